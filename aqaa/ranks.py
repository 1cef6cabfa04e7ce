"""What a process of several says to the others; alone it says it to itself.

Letters: none; tensors of any shape are summed.
"""

from typing import Any

from torch import Tensor, distributed


def rank() -> int:
    """Number of this process in its group, 0 if it is alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def ranks() -> int:
    """How many processes the group has."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def total(tensor: Tensor) -> Tensor:
    """The sum over all ranks, in the same shape; every rank must come here."""
    if ranks() > 1:
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def from_first(value: Any) -> Any:
    """What rank 0 has; every rank must come here."""
    if ranks() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]
