"""Square-root ALiBi against three plain loops, in blocks, with a cache, beside padding."""

from math import exp, sqrt

import pytest
import torch
from torch import Tensor

from aqaa.backbone import attention
from aqaa.backbone.attention import attend, bias, slopes


def sample(
    heads: int = 6, groups: int = 2, queries: int = 7, keys: int = 7
) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(2, heads, queries, 4)
    return q, torch.randn(2, groups, keys, 4), torch.randn(2, groups, keys, 4)


def loop(q: Tensor, k: Tensor, v: Tensor, first: int = 0) -> Tensor:
    """Logit q.k / sqrt(d) - m_h sqrt(i - j); key head g serves H/G query heads in a row."""
    batch, heads, queries, width = q.shape
    share, m = heads // k.shape[1], slopes(heads)
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            g = h // share
            for i in range(queries):
                logits = []
                for j in range(first + i + 1):
                    dot = sum(float(q[b, h, i, d]) * float(k[b, g, j, d]) for d in range(width))
                    logits.append(dot / sqrt(width) - m[h] * sqrt(first + i - j))
                weights = [exp(x - max(logits)) for x in logits]
                for j, weight in enumerate(weights):
                    out[b, h, i] += weight / sum(weights) * v[b, g, j].double()
    return out.float()


def test_the_slopes_of_48_heads() -> None:
    found = slopes(48)
    assert len(found) == 48
    assert found[:2] == pytest.approx([0.8409, 0.7071], abs=1e-4)
    assert found[31] == pytest.approx(0.0039, abs=1e-4)
    assert found[32:34] == pytest.approx([0.9170, 0.7711], abs=1e-4)


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (1, [2**-8]),
        (4, [2**-2, 2**-4, 2**-6, 2**-8]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
    ],
)
def test_slopes_by_hand(heads: int, expected: list[float]) -> None:
    assert slopes(heads) == pytest.approx(expected)


def test_the_bias_by_hand() -> None:
    found = bias(4, torch.arange(3, 5), torch.arange(5))
    never = float("-inf")
    assert found[0, 0].tolist() == pytest.approx(
        [-(3**0.5) / 4, -(2**0.5) / 4, -0.25, 0, never], abs=1e-6
    )
    assert found[0, 1].tolist() == pytest.approx(
        [-0.5, -(3**0.5) / 4, -(2**0.5) / 4, -0.25, 0], abs=1e-6
    )


@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (4, 4), (4, 1), (3, 3)])
def test_attention_against_loops(heads: int, groups: int) -> None:
    q, k, v = sample(heads, groups)
    torch.testing.assert_close(attend(q, k, v), loop(q, k, v), rtol=0, atol=1e-5)


def test_attention_behind_a_cache_against_loops() -> None:
    q, k, v = sample(queries=3, keys=9)
    torch.testing.assert_close(attend(q, k, v, first=6), loop(q, k, v, 6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("block", [1, 2, 5, 64])
@pytest.mark.parametrize("first", [0, 4])
def test_blocks_of_queries_equal_the_whole(
    block: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = sample(queries=11, keys=11 + first)
    whole = attend(q, k, v, first=first)
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    torch.testing.assert_close(attend(q, k, v, first=first), whole, rtol=0, atol=1e-5)


def test_a_bias_too_large_to_keep_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = sample()
    kept = attend(q, k, v)
    monkeypatch.setattr(attention, "_CACHED_NUMBERS", 0)
    attention._block_bias.cache_clear()
    assert torch.equal(attend(q, k, v), kept)
    assert attention._block_bias.cache_info().currsize == 0


def test_step_by_step_equals_the_whole() -> None:
    q, k, v = sample(queries=9, keys=9)
    steps = [
        attend(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], first=i) for i in range(9)
    ]
    torch.testing.assert_close(torch.cat(steps, 2), attend(q, k, v), rtol=0, atol=1e-5)


def test_what_comes_later_changes_nothing() -> None:
    q, k, v = sample()
    before = attend(q, k, v)[:, :, :5]
    for tensor in (q, k, v):
        tensor[:, :, 5:] = 1e4
    torch.testing.assert_close(attend(q, k, v)[:, :, :5], before, rtol=0, atol=1e-6)


def test_training_goes_on_after_decoding_in_inference_mode() -> None:
    attention._block_bias.cache_clear()
    q, k, v = sample()
    with torch.inference_mode():
        attend(q, k, v)
    q.requires_grad_()
    attend(q, k, v).sum().backward()
    assert q.grad is not None


def test_half_precision_stays_half() -> None:
    q, k, v = (t.bfloat16() for t in sample())
    out = attend(q, k, v)
    assert out.dtype == torch.bfloat16
    full = loop(q.float(), k.float(), v.float())
    torch.testing.assert_close(out.float(), full, rtol=0.05, atol=0.05)
