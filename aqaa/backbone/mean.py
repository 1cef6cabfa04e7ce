"""The weighted mean of numbers, summed in float64 and rounded once; the same bits on any machine.

Letters: N numbers.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TIE = -(1 << 31)  # the lower half of a float32 that lies between two bfloat16, shifted up


def room_for(numbers: int) -> Tensor:
    """Memory for :func:`mean` to work in, taken once: (3, N) of float64."""
    return torch.empty(3, numbers, dtype=torch.float64)


def mean(
    parts: Iterable[tuple[Tensor, float]], total_weight: float, out: Tensor, room: Tensor
) -> None:
    """Weighted mean of (N,) tensors.

    Args:
        parts: tensors and their weights.
        total_weight: what the sum is divided by.
        out: (N,), gets it.
        room: of :func:`room_for` N or more.
    """
    total, term, more = room[:, : len(out)]
    for number, (tensor, weight) in enumerate(parts):
        # Not one fused operation: machines that have it would round otherwise than those without.
        product = (term if number else total).copy_(tensor)
        if weight != 1:
            product.mul_(weight)
        if number:
            total.add_(product)
    if out.dtype == torch.bfloat16:
        torch.mul(total, 1 / total_weight, out=term)
        _round(total, total_weight, term, more.view(torch.float32)[: len(out)], out)
        return
    total.div_(total_weight)
    if out.dtype == torch.float16:
        out.numpy()[:] = total.numpy()  # torch would go by float32 and round twice
    else:
        out.copy_(total)


def _round(
    total: Tensor, total_weight: float, near: Tensor, single: Tensor, out: Tensor
) -> None:
    """Round ``total / total_weight`` to bfloat16 by way of float32, once.

    Rounding twice, and a product for a quotient, are seen only in numbers that float32 puts just
    between two of bfloat16: these few are divided, and moved off where the quotient is not there.

    Args:
        total: (N,) of float64.
        total_weight: what it is divided by.
        near: (N,) of float64, the quotient but for its last bits; used up.
        single: (N,) of float32, used.
        out: (N,), gets it.
    """
    single.copy_(near)
    bits: Any = single.view(torch.int32).numpy()
    low: Any = near.view(torch.int32)[: len(out)].numpy()
    np.left_shift(bits, 16, out=low)
    if len(out) and low.min() == _TIE:
        ties = np.flatnonzero(low == _TIE)
        exact = np.abs(total.numpy()[ties] / total_weight)
        off = exact - np.abs(single.numpy()[ties].astype(np.float64))
        bits[ties] += np.sign(off).astype(np.int32)
    out.copy_(single)
