"""The velocity network keeps the items of a batch apart and hears time and condition."""

import pytest
import torch

from aqaa.vocoder.unet import UNet
from tests.golden.make import randomise


def inputs(batch: int = 2, pairs: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 6, pairs, generator=generator)
    condition = torch.randn(batch, 8, pairs, generator=generator)
    return x, condition, torch.rand(batch, generator=generator)


def net() -> torch.nn.Module:
    return randomise(UNet(channels_io=6, channels=8, time_width=8))


@torch.no_grad()
def test_a_padded_batch_equals_single_items() -> None:
    x, condition, time = inputs()
    mask = torch.ones(2, 24)
    mask[1, 12:] = 0
    x[1, :, 12:] = 1e3  # whatever stands in the padding
    condition[1, :, 12:] = -1e3
    network = net()
    together = network(x, condition, time, mask)
    assert together.shape == x.shape
    first = network(x[:1], condition[:1], time[:1], mask[:1])
    torch.testing.assert_close(together[:1], first, rtol=0, atol=1e-5)
    alone = network(x[1:, :, :12], condition[1:, :, :12], time[1:], torch.ones(1, 12))
    torch.testing.assert_close(together[1:, :, :12], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("which", [0, 1, 2])
@torch.no_grad()
def test_every_input_matters(which: int) -> None:
    values, mask, network = list(inputs()), torch.ones(2, 24), net()
    before = network(*values, mask)
    values[which] = values[which] + 0.3
    assert (network(*values, mask) - before).abs().max() > 1e-3


def test_every_parameter_learns() -> None:
    network = net().train()
    network(*inputs(), torch.ones(2, 24)).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
