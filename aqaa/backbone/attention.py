"""Attention with the square-root ALiBi of Step-1: bias -m_h * sqrt(i - j), added after scaling.

Letters: B sequences, H query heads, G key/value heads, Q queries, K keys, D head width, N block.
Stock kernels know only linear ALiBi, and a dense (H, T, T) bias would be 13 GB a layer at 130B. So
there are three back-ends: ``sdpa`` in blocks of queries, ``flex`` (its kernel computes the bias;
gradients on a GPU only), and one row of plain products for an id decoded behind a cache.
"""

from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from aqaa.backbone.reach import Reach

Backend = Literal["sdpa", "flex"]
QUERY_BLOCK = 512
_KEPT_NUMBERS = 1 << 20  # a dense bias of up to 4 MB is kept for the next layer and step


def slopes(heads: int) -> list[float]:
    """Slope of each head, as a function of the total number of heads.

    With n the largest power of two <= heads: 2^(-8k/n) for the first n heads, then 2^(-4(2k-1)/n).
    """
    n = 1 << (heads.bit_length() - 1)
    first = [2 ** (-8 * k / n) for k in range(1, n + 1)]
    return first + [2 ** (-4 * (2 * k - 1) / n) for k in range(1, heads - n + 1)]


def bias(heads: int, distance: Tensor) -> Tensor:
    """Additive bias (H, ...) of keys ``distance`` (...) places behind their query; -inf ahead."""
    m = torch.tensor(slopes(heads), device=distance.device).view(-1, *[1] * distance.dim())
    return (-m * distance.clamp(min=0).float().sqrt()).masked_fill(distance < 0, float("-inf"))


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, reach: Reach, backend: Backend | None = None
) -> Tensor:
    """Causal attention of the last Q of K places, each inside its own document.

    Args:
        q: (B, H, Q, D).
        k: (B, G, K, D); key head g serves query heads g*H/G .. (g+1)*H/G - 1.
        v: (B, G, K, D).
        reach: which keys a query may see.
        backend: None takes flex on a GPU where no key is cached, else sdpa.

    Returns:
        (B, H, Q, D).
    """
    if backend not in (None, *get_args(Backend)):
        raise ValueError(f"attention {backend!r} is not one of {', '.join(get_args(Backend))}")
    if k.shape[2] != reach.cached + q.shape[2]:
        raise ValueError(f"{k.shape[2]} keys for {reach.cached} cached ids and {q.shape[2]} new")
    if reach.cached and q.shape[2] == 1:
        return _one_row(q, k, v, reach)
    if not reach.cached and (backend == "flex" or (backend is None and q.is_cuda)):
        return _flex(q, k, v, reach)
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    if q.is_meta:  # meta tensors have shapes but no documents
        return _causal(q, k, v)
    if reach.forks is not None:
        forked = zip(q.split(1), k.split(1), v.split(1), reach.branches, strict=True)
        return torch.cat([_forked(*row) for row in forked])
    if reach.starts is None:
        return _causal(q, k, v)
    rows = zip(q.split(1), k.split(1), v.split(1), reach.documents, strict=True)
    return torch.cat([_row(*row) for row in rows])


def _row(q: Tensor, k: Tensor, v: Tensor, documents: tuple[int, list[int]]) -> Tensor:
    """One sequence (1, H, Q, D), document by document: no other's keys are ever touched."""
    skipped, lengths = documents
    behind = k.shape[2] - q.shape[2] - skipped
    # split, unlike slices, has a cheap backward pass.
    pieces = [skipped, behind + lengths[0], *lengths[1:]]
    keys, values = k.split(pieces, 2)[1:], v.split(pieces, 2)[1:]
    parts = zip(q.split(lengths, 2), keys, values, strict=True)
    return torch.cat([_causal(*part) for part in parts], 2)


def _forked(q: Tensor, k: Tensor, v: Tensor, fork: list[int]) -> Tensor:
    """One sequence (1, H, Q, D) with two branches: the second's keys follow what both share."""
    first, second = fork
    branch = q.shape[2] - second
    one, two = q.split([second, branch], 2)
    heard = _causal(one, k[:, :, :second], v[:, :, :second])
    if not branch:
        return heard
    k, v = (torch.cat([x[:, :, :first], x[:, :, second:]], 2) for x in (k, v))
    return torch.cat([heard, _causal(two, k, v)], 2)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The last Q of K places of one document, (B, H, Q, D) and (B, H, K, D), in query blocks."""
    end = k.shape[2] - q.shape[2]
    parts = []
    for block in q.split(QUERY_BLOCK, 2):
        end += block.shape[2]
        parts.append(_block(block, k[:, :, :end], v[:, :, :end]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads, rows, end = q.shape[1], q.shape[2], k.shape[2]
    size = -(-rows // 64) * 64  # rounded up so that the kept ones are few
    if heads * size * end <= _KEPT_NUMBERS:
        kept = _kept_bias(heads, end - rows, size, q.device)[None, :, :rows, :end]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=kept.to(q.dtype))
    # With the queries in reverse the bias depends on i + j alone, so a vector seen through equal
    # strides is the whole of it, and all that autograd keeps.
    line = bias(heads, torch.arange(end - 1, -rows, -1, device=q.device)).to(q.dtype)
    view = line.as_strided((1, heads, rows, end), (0, line.stride(0), 1, 1))
    if q.is_cuda:
        view = view.contiguous()  # its kernels want rows apart
    return F.scaled_dot_product_attention(q.flip(2), k, v, attn_mask=view).flip(2)


@lru_cache(maxsize=8)
def _kept_bias(heads: int, first: int, rows: int, device: torch.device) -> Tensor:
    """Bias (H, Q, K) of ``rows`` queries from place ``first`` against keys up to the last."""
    # A tensor born in inference mode could not serve a later backward pass.
    with torch.inference_mode(False):
        queries = torch.arange(first, first + rows, device=device)
        return bias(heads, queries[:, None] - torch.arange(first + rows, device=device))


def _one_row(q: Tensor, k: Tensor, v: Tensor, reach: Reach) -> Tensor:
    """One query a sequence: keys and values are not repeated for their groups of heads."""
    groups, keys = k.shape[1], k.shape[2]
    grouped = q.view(len(q), groups, -1, q.shape[3])  # (B, G, H/G, D)
    place = torch.arange(keys, device=q.device)
    logits = grouped @ k.transpose(2, 3) * q.shape[3] ** -0.5  # (B, G, H/G, K)
    logits = logits.float() + bias(q.shape[1], keys - 1 - place).view(groups, -1, keys)
    if reach.starts is not None:
        logits = logits.masked_fill((place < reach.starts)[:, None, None], float("-inf"))
    return (logits.softmax(-1).to(v.dtype) @ v).view(q.shape)


def _flex(q: Tensor, k: Tensor, v: Tensor, reach: Reach) -> Tensor:
    """One fused kernel that computes the bias and skips blocks out of reach."""
    m = torch.tensor(slopes(q.shape[1]), device=q.device)

    def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return value - m[h] * (i - j).abs().float().sqrt()

    if reach.forks is not None:
        first, second = reach.forks.unbind(1)

        def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            over = torch.where((i >= second[b]) & (j < first[b]), second[b] - first[b], 0)
            return value - m[h] * (i - j - over).abs().float().sqrt()

    kernel: Any = _compiled_flex() if q.is_cuda else flex_attention
    return kernel(q, k, v, score_mod=score, block_mask=reach.block_mask, enable_gqa=True)


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    return torch.compile(flex_attention)
