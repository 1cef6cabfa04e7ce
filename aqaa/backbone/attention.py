"""Attention with the square-root ALiBi of Step-1: bias -m_h * sqrt(i - j), added after scaling.

Letters: B sequences, H query heads, G key/value heads, Q queries, K keys, D head width.
Stock attention kernels know only linear ALiBi, so the bias is made per block of queries and a
dense (H, T, T) tensor never exists.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

QUERY_BLOCK = 512
_CACHED_NUMBERS = 1 << 23  # a bias of up to 32 MB is kept for the next layer and step


def slopes(heads: int) -> list[float]:
    """Slope of each head, as a function of the total number of heads.

    With n the largest power of two <= heads: 2^(-8k/n) for the first n heads, then 2^(-4(2k-1)/n).
    """
    n = 1 << (heads.bit_length() - 1)
    first = [2 ** (-8 * k / n) for k in range(1, n + 1)]
    return first + [2 ** (-4 * (2 * k - 1) / n) for k in range(1, heads - n + 1)]


def bias(heads: int, queries: Tensor, keys: Tensor) -> Tensor:
    """Additive bias (H, Q, K) of positions ``queries`` (Q,) and ``keys`` (K,); -inf ahead."""
    distance = (queries[:, None] - keys[None]).float()
    m = torch.tensor(slopes(heads), device=queries.device)[:, None, None]
    return (-m * distance.clamp(min=0).sqrt()).masked_fill(distance < 0, float("-inf"))


@lru_cache(maxsize=8)
def _block_bias(heads: int, start: int, queries: int, device: torch.device) -> Tensor:
    """Bias of ``queries`` positions from ``start`` against every key up to the last of them."""
    # A tensor born in inference mode could not serve a later backward pass.
    with torch.inference_mode(False):
        q = torch.arange(start, start + queries, device=device)
        return bias(heads, q, torch.arange(start + queries, device=device))


def attend(q: Tensor, k: Tensor, v: Tensor, *, first: int = 0) -> Tensor:
    """Causal attention of queries at positions first..first+Q-1 over keys 0..K-1.

    Args:
        q: (B, H, Q, D).
        k: (B, G, K, D) with K = first + Q; key head g serves heads g*H/G .. (g+1)*H/G - 1.
        v: (B, G, K, D).
        first: position of the first query, the length of the cache before it.

    Returns:
        (B, H, Q, D). Right padding is safe: a later position never reaches an earlier one.
    """
    heads, queries = q.shape[1], q.shape[2]
    k = k.repeat_interleave(heads // k.shape[1], 1)
    v = v.repeat_interleave(heads // v.shape[1], 1)
    parts = []
    for begin in range(0, queries, QUERY_BLOCK):
        rows = min(QUERY_BLOCK, queries - begin)
        end = first + begin + rows
        if rows == 1:
            at = torch.tensor([end - 1], device=q.device)
            part_bias = bias(heads, at, torch.arange(end, device=q.device))
        else:
            size = -(-rows // 64) * 64 if begin + rows == queries else rows
            # Lengths are rounded up so that the cached blocks are few; large ones are not kept.
            small = heads * size * end <= _CACHED_NUMBERS
            make = _block_bias if small else _block_bias.__wrapped__
            part_bias = make(heads, first + begin, size, q.device)[:, :rows, :end]
        parts.append(
            F.scaled_dot_product_attention(
                q[:, :, begin : begin + rows], k[:, :, :end], v[:, :, :end],
                attn_mask=part_bias[None].to(q.dtype),  # the fused CPU kernel wants four axes
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
