"""Square-root ALiBi: every back-end against three plain loops, packed, padded, behind a cache."""

from math import exp, sqrt

import pytest
import torch
from torch import Tensor

from aqaa.backbone import attention
from aqaa.backbone.attention import attend, bias, slopes
from aqaa.backbone.reach import Reach

# Documents of 4, 1 and 2 ids; of 7; of 3 and 4.
PACKED = torch.tensor([[0, 1, 2, 3, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 0, 1, 2, 3]])


def sample(
    heads: int = 6, groups: int = 2, queries: int = 7, keys: int = 7, batch: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(batch, heads, queries, 4)
    return q, torch.randn(batch, groups, keys, 4), torch.randn(batch, groups, keys, 4)


def loop(
    q: Tensor, k: Tensor, v: Tensor, first: int = 0, positions: Tensor | None = None
) -> Tensor:
    """Logit q.k / sqrt(d) - m_h sqrt(i - j); key head g serves H/G query heads in a row.

    A query at position p of its document sees the p keys before it and its own.
    """
    batch, heads, queries, width = q.shape
    share, m = heads // k.shape[1], slopes(heads)
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            g = h // share
            for i in range(queries):
                here = first + i
                start = 0 if positions is None else here - int(positions[b, i])
                logits = []
                for j in range(start, here + 1):
                    dot = sum(float(q[b, h, i, d]) * float(k[b, g, j, d]) for d in range(width))
                    logits.append(dot / sqrt(width) - m[h] * sqrt(here - j))
                weights = [exp(x - max(logits)) for x in logits]
                for j, weight in enumerate(weights):
                    out[b, h, i] += weight / sum(weights) * v[b, g, start + j].double()
    return out.float()


def heard(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: int = 0,
    positions: Tensor | None = None,
    backend: attention.Backend | None = None,
) -> Tensor:
    ids = torch.zeros(len(q), q.shape[2], dtype=torch.long)
    reach = Reach.of(ids, cached=first, position_ids=positions)
    return attend(q, k, v, reach=reach, backend=backend)


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
    found = bias(4, torch.arange(3, 5)[:, None] - torch.arange(5))
    never = float("-inf")
    assert found[0, 0].tolist() == pytest.approx(
        [-(3**0.5) / 4, -(2**0.5) / 4, -0.25, 0, never], abs=1e-6
    )
    assert found[0, 1].tolist() == pytest.approx(
        [-0.5, -(3**0.5) / 4, -(2**0.5) / 4, -0.25, 0], abs=1e-6
    )


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (4, 4), (4, 1), (3, 3)])
def test_attention_against_loops(heads: int, groups: int, backend: attention.Backend) -> None:
    q, k, v = sample(heads, groups)
    torch.testing.assert_close(heard(q, k, v, backend=backend), loop(q, k, v), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_packed_documents_against_loops(backend: attention.Backend) -> None:
    q, k, v = sample(batch=3)
    found = heard(q, k, v, positions=PACKED, backend=backend)
    torch.testing.assert_close(found, loop(q, k, v, 0, PACKED), rtol=0, atol=1e-5)


@pytest.mark.parametrize("queries", [1, 3])
def test_attention_behind_a_cache_against_loops(queries: int) -> None:
    q, k, v = sample(queries=queries, keys=6 + queries)
    torch.testing.assert_close(heard(q, k, v, 6), loop(q, k, v, 6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", [[[4], [0]], [[4, 5, 0], [6, 7, 8]], [[0, 1, 2], [2, 0, 0]]])
def test_a_document_goes_on_behind_a_cache(positions: list[list[int]]) -> None:
    at = torch.tensor(positions)
    q, k, v = sample(queries=at.shape[1], keys=6 + at.shape[1])
    expected = loop(q, k, v, 6, at)
    torch.testing.assert_close(heard(q, k, v, 6, at), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_gradients_against_a_dense_bias(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_KEPT_NUMBERS", kept)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 3)
    inputs = [t.requires_grad_() for t in sample(batch=3)]
    weights = torch.randn(3, 6, 7, 4)
    place = torch.arange(7)
    m = torch.tensor(slopes(6))[:, None, None]
    logits = inputs[0] @ inputs[1].repeat_interleave(3, 1).transpose(2, 3) / 2
    logits = logits - m * (place[:, None] - place).abs().sqrt()
    behind = place[:, None] - place
    unseen = (behind < 0) | (behind > PACKED[:, :, None])
    probabilities = logits.masked_fill(unseen[:, None], -torch.inf).softmax(-1)
    plain = probabilities @ inputs[2].repeat_interleave(3, 1)
    expected = torch.autograd.grad((plain * weights).sum(), inputs)
    found = torch.autograd.grad((heard(*inputs, positions=PACKED) * weights).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kept", [0, 1 << 20])
@pytest.mark.parametrize("block", [1, 2, 5, 64])
@pytest.mark.parametrize("first", [0, 4])
def test_blocks_of_queries_equal_the_whole(
    block: int, first: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = sample(queries=11, keys=11 + first)
    whole = heard(q, k, v, first)
    monkeypatch.setattr(attention, "_KEPT_NUMBERS", kept)
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    torch.testing.assert_close(heard(q, k, v, first), whole, rtol=0, atol=1e-5)


def test_a_long_row_keeps_no_dense_bias() -> None:
    heads, places = 4, 2048
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes() // 4)
        return tensor

    q, k, v = sample(heads, heads, places, places, batch=1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        heard(q.requires_grad_(), k, v)
    dense = heads * places * places
    assert max(kept) <= max(attention._KEPT_NUMBERS, q.numel()) < dense / 8
    assert sum(kept) < dense / 2


def test_step_by_step_equals_the_whole() -> None:
    q, k, v = sample(queries=9, keys=9)
    steps = [
        heard(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], i) for i in range(9)
    ]
    torch.testing.assert_close(torch.cat(steps, 2), heard(q, k, v), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_what_comes_later_changes_nothing(backend: attention.Backend) -> None:
    q, k, v = sample()
    before = heard(q, k, v, backend=backend)[:, :, :5]
    for tensor in (q, k, v):
        tensor[:, :, 5:] = 1e4
    assert torch.equal(heard(q, k, v, backend=backend)[:, :, :5], before)


def test_training_goes_on_after_decoding_in_inference_mode() -> None:
    attention._kept_bias.cache_clear()
    q, k, v = sample()
    with torch.inference_mode():
        heard(q, k, v)
    q.requires_grad_()
    heard(q, k, v).sum().backward()
    assert q.grad is not None


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@pytest.mark.parametrize("first", [0, 6])
def test_half_precision_stays_half(backend: attention.Backend, first: int) -> None:
    q, k, v = (t.bfloat16() for t in sample(queries=1 if first else 7))
    out = heard(q, k, v, first, backend=backend)
    assert out.dtype == torch.bfloat16
    full = loop(q.float(), k.float(), v.float(), first)
    torch.testing.assert_close(out.float(), full, rtol=0.05, atol=0.05)


def test_wrong_use_is_refused() -> None:
    q, k, v = sample()
    with pytest.raises(ValueError, match="attention 'flash' is not one of sdpa, flex"):
        heard(q, k, v, backend="flash")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="7 keys for 2 cached ids and 7 new"):
        heard(q, k, v, 2)
