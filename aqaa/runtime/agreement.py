"""What the processes of a run must agree on, without waiting for a GPU: they talk over gloo.

Letters: R ranks.
"""

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aqaa.ranks import ranks


def largest(value: int) -> int:
    """The largest ``value`` of all ranks; every rank has to ask, and gets the same answer."""
    if ranks() == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=_gloo(dist.group.WORLD))
    return int(found)


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` holds on any rank; every rank has to ask."""
    return bool(largest(int(flag)))


def gathered(value: Tensor) -> Tensor:
    """A host tensor of one shape on every rank, stacked: (R, ...)."""
    if ranks() == 1:
        return value[None]
    found = [torch.empty_like(value) for _ in range(ranks())]
    dist.all_gather(found, value.contiguous(), group=_gloo(dist.group.WORLD))
    return torch.stack(found)


@cache
def _gloo(world: Any) -> Any:
    """A group of our own: collectives of a thread or of NCCL never mix with it."""
    return dist.new_group(backend="gloo")
