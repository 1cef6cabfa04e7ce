"""Relative attention against loops over queries and keys; padding changes nothing."""

import math

import pytest
import torch
from torch import Tensor

from aqaa.vocoder.encoder import (
    EncoderLayer,
    RelativeAttention,
    TokenEncoder,
    by_distance,
    relative_positions,
)
from tests.golden.make import randomise


def encoder() -> TokenEncoder:
    return randomise(TokenEncoder(code_width=5, width=8, heads=2, inner=12, layers=2))


def position(distance: int, width: int) -> Tensor:
    """Sine and cosine of each rate in turns."""
    rates = [1e4 ** (-2 * k / width) for k in range(width // 2)]
    return torch.tensor([f(distance * r) for r in rates for f in (math.sin, math.cos)])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_distances_are_found_again(count: int) -> None:
    table = relative_positions(count, 8, device=torch.device("cpu"))
    rows = [position(d, 8) for d in range(count - 1, -count, -1)]
    torch.testing.assert_close(table, torch.stack(rows), rtol=0, atol=1e-5)
    numbered = torch.arange(count - 1.0, -count, -1).expand(2, 3, count, -1).contiguous()
    i, j = torch.arange(count)[:, None], torch.arange(count)
    assert torch.equal(by_distance(numbered), (i - j).float().expand(2, 3, count, count))


@pytest.mark.parametrize("count", [1, 4])
@torch.no_grad()
def test_attention_against_a_loop(count: int) -> None:
    layer = randomise(RelativeAttention(width=8, heads=2))
    x = torch.randn(1, count, 8)
    q, k, v = layer.linear_q(x)[0], layer.linear_k(x)[0], layer.linear_v(x)[0]
    heard = torch.zeros(count, 8)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        u, w = layer.pos_bias_u[head], layer.pos_bias_v[head]
        for i in range(count):
            scores = []
            for j in range(count):
                place = layer.linear_pos(position(i - j, 8))[part]
                scores.append(((q[i, part] + u) @ k[j, part] + (q[i, part] + w) @ place) / 2)
            weights = torch.stack(scores).softmax(0)
            heard[i, part] = sum(weights[j] * v[j, part] for j in range(count))
    positions = relative_positions(count, 8, device=x.device)
    torch.testing.assert_close(
        layer(x, positions, None)[0], layer.linear_out(heard), rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_the_layers_in_a_row() -> None:
    net, x = encoder(), torch.randn(1, 4, 5)
    positions = relative_positions(4, 8, device=x.device)
    h = net.embed.out[1](net.embed.out[0](x)) * 8**0.5
    for layer in net.encoders:
        assert isinstance(layer, EncoderLayer)
        h = h + layer.self_attn(layer.norm_mha(h), positions, None)
        inner = layer.feed_forward.w_1(layer.norm_ff(h))
        h = h + layer.feed_forward.w_2(inner * torch.sigmoid(inner))
    torch.testing.assert_close(net(x, None), net.after_norm(h), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_padded_batch_equals_single_items() -> None:
    net, x, mask = encoder(), torch.randn(2, 7, 5), torch.ones(2, 7)
    mask[1, 4:] = 0
    x[1, 4:] = 1e2
    together = net(x, mask)
    torch.testing.assert_close(together[:1], net(x[:1], None), rtol=0, atol=1e-5)
    torch.testing.assert_close(together[1:, :4], net(x[1:, :4], None), rtol=0, atol=1e-5)


def test_dropout_is_for_training_alone() -> None:
    net, x = encoder(), torch.randn(1, 4, 5)
    assert torch.equal(net(x, None), net(x, None))
    net.train()
    assert not torch.equal(net(x, None), net(x, None))
