"""Stretching against a loop; the convolutions do not hear padding."""

import pytest
import torch
from torch.nn import functional as F

from aqaa.vocoder.regulator import LengthRegulator, stretch
from tests.golden.make import randomise


@pytest.mark.parametrize(("tokens", "frames"), [(5, 10), (7, 14), (4, 3), (1, 2), (3, 3)])
def test_stretching_against_a_loop(tokens: int, frames: int) -> None:
    x = torch.randn(1, 2, tokens)
    for f in range(frames):
        place = min(max((f + 0.5) * tokens / frames - 0.5, 0), tokens - 1)
        low = int(place)
        high, share = min(low + 1, tokens - 1), place - low
        wanted = (1 - share) * x[0, :, low] + share * x[0, :, high]
        found = stretch(x, [tokens], [frames])[0, :, f]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_each_item_stretches_its_own_tokens() -> None:
    x = torch.randn(3, 2, 6)
    x[1, :, 4:] = 1e3
    together = stretch(x, [6, 4, 6], [11, 9, 5])
    assert together.shape == (3, 2, 11)
    for i, (tokens, frames) in enumerate(((6, 11), (4, 9), (6, 5))):
        alone = stretch(x[i : i + 1, :, :tokens], [tokens], [frames])
        assert torch.equal(together[i : i + 1, :, :frames], alone)
        assert not together[i, :, frames:].any()


@torch.no_grad()
def test_the_convolutions_in_a_row_and_in_a_padded_batch() -> None:
    net, x = randomise(LengthRegulator(channels=4, layers=2)), torch.randn(2, 4, 9)
    h = x
    for i in (0, 3):
        convolution, norm = net.model[i], net.model[i + 1]
        h = F.conv1d(h, convolution.weight, convolution.bias, padding=1)
        h = F.group_norm(h, 1, norm.weight, norm.bias)
        h = h * torch.tanh(F.softplus(h))
    h = net.model[6](h)
    torch.testing.assert_close(net(x, None), h, rtol=0, atol=1e-5)
    mask = torch.ones(2, 1, 9)
    mask[1, :, 6:] = 0
    together = net(x, mask)
    torch.testing.assert_close(together[:1], h[:1], rtol=0, atol=1e-5)
    alone = net(x[1:, :, :6], None)
    torch.testing.assert_close(together[1:, :, :6], alone, rtol=0, atol=1e-5)
    assert not together[1, :, 6:].any()
