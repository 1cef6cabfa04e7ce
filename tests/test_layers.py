"""Shared layers: padding changes nothing, and what they compute is what they say."""

import pytest
import torch
from torch.nn import functional as F

from aqaa.errors import UsageError
from aqaa.layers import ConvAttention, MaskedGroupNorm, spread
from tests.golden.make import randomise


def test_attention_does_not_see_padding() -> None:
    layer = randomise(ConvAttention(width=8))
    x, mask = torch.randn(2, 9, 8), torch.ones(2, 9)
    mask[0, 6:] = 0
    out = layer(x, mask)
    alone = layer(x[:1, :6], torch.ones(1, 6))
    torch.testing.assert_close(out[:1, :6], alone, rtol=0, atol=1e-5)
    x[0, 6:] = 1e3
    torch.testing.assert_close(layer(x, mask)[:1, :6], alone, rtol=0, atol=1e-5)


def test_attention_against_a_loop() -> None:
    layer = randomise(ConvAttention(width=8, heads=2))
    x = torch.randn(1, 5, 8)
    h = x + layer.convolution(x.mT).mT
    q, k, v = layer.attention_in(layer.attention_norm(h))[0].chunk(3, -1)
    heard = torch.zeros(5, 8)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        for i in range(5):
            scores = torch.stack([q[i, part] @ k[j, part] / 2 for j in range(5)]).softmax(0)
            heard[i, part] = sum(scores[j] * v[j, part] for j in range(5))
    h = h + layer.attention_out(heard)
    expected = h + layer.mlp_out(F.gelu(layer.mlp_in(layer.mlp_norm(h))))
    torch.testing.assert_close(layer(x, torch.ones(1, 5)), expected, rtol=0, atol=1e-5)


def test_group_norm_equals_torchs_on_real_frames() -> None:
    norm = randomise(MaskedGroupNorm(2, 6))
    x, mask = torch.randn(2, 6, 10), torch.ones(2, 1, 10)
    mask[1, :, 7:] = 0
    out = norm(x, mask)
    whole = F.group_norm(x[:1], 2, norm.weight, norm.bias, norm.eps)
    short = F.group_norm(x[1:, :, :7], 2, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(out[:1], whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(out[1:, :, :7], short, rtol=0, atol=1e-5)


def test_group_norm_of_a_constant_is_finite() -> None:
    x = torch.full((1, 4, 7), 1234.567) + torch.linspace(0, 1e-4, 7)
    assert MaskedGroupNorm(2, 4)(x, torch.ones(1, 1, 7)).isfinite().all()


def test_spread_keeps_distances_in_proportion() -> None:
    codes = torch.randn(60, 5) * torch.tensor([1.0, 2, 0.5, 1, 3]) + 7
    rows = spread(codes, 24, seed=1)
    ratio = torch.pdist(rows) / torch.pdist(codes)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)
    assert rows.pow(2).mean().sqrt() == pytest.approx(1, rel=0.1)
    assert torch.equal(rows, spread(codes, 24, seed=1))
    assert not torch.allclose(rows, spread(codes, 24, seed=2))


def test_spread_refuses_what_it_cannot_spread() -> None:
    with pytest.raises(UsageError, match="width 5 do not fit rows of width 4"):
        spread(torch.randn(9, 5), 4, seed=0)
    with pytest.raises(UsageError, match="never started"):
        spread(torch.zeros(9, 5), 8, seed=0)


def test_group_norm_without_a_mask_is_torchs() -> None:
    norm, x = randomise(MaskedGroupNorm(2, 6)), torch.randn(2, 6, 10)
    wanted = F.group_norm(x, 2, norm.weight, norm.bias, norm.eps)
    assert torch.equal(norm(x, None), wanted)
