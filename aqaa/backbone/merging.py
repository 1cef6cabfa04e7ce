"""The weighted mean of models (paper Eq. 3: 5 SFT 1, 5 SFT 2, 1 DPO, over 11).

Letters: N numbers of one tensor, in whatever shape.
"""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.storage import save_tensors


def mean(tensors: list[Tensor], weights: list[float]) -> Tensor:
    """Weighted mean of (N,) tensors in float64, rounded once to their own dtype."""
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor.double()
    return (total / sum(weights)).to(tensors[0].dtype)


def _open(source: Path) -> Any:
    try:
        return safe_open(str(source), framework="pt")
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read {source}: {error}") from None


def merge_files(sources: list[Path], weights: list[float], out: Path) -> int:
    """Merge safetensors files tensor by tensor; returns the number of parameters.

    Raises:
        UsageError: names, shapes or dtypes differ (all three are named), or the weights are unfit.
    """
    if len(sources) != len(weights) or not sources:
        raise UsageError(f"{len(sources)} models and {len(weights)} weights: give one weight each")
    if not all(0 <= w < math.inf for w in weights) or sum(weights) == 0:
        raise UsageError(f"merge weights {weights} must be finite, not negative and not all zero")
    merged = {}
    with ExitStack() as stack:
        files = [stack.enter_context(_open(s)) for s in sources]
        names = [set(f.keys()) for f in files]
        for source, found in zip(sources[1:], names[1:], strict=True):
            if found != names[0]:
                odd = sorted(found ^ names[0])
                raise UsageError(
                    f"{source} and {sources[0]} differ in {len(odd)} tensors, e.g. {odd[0]}"
                )
        for name in sorted(names[0]):
            parts = [f.get_tensor(name) for f in files]
            shapes = {(tuple(p.shape), p.dtype) for p in parts}
            if len(shapes) > 1:
                raise UsageError(f"tensor {name} has shapes and dtypes {sorted(map(str, shapes))}")
            merged[name] = mean(parts, weights)
    save_tensors(out, merged, {"format": "pt"})
    return sum(t.numel() for t in merged.values())
