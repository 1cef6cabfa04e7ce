"""Tensors from elsewhere into our modules: all there, shaped as they must be and finite.

Letters: none of its own; a state maps names to tensors of any shape.
"""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from aqaa.errors import UsageError

Module = TypeVar("Module", bound=nn.Module)
State = Mapping[str, Any]
_LISTED = 8


def shape_of(state: State, name: str, what: str) -> tuple[int, ...]:
    """The shape of a tensor that must be there.

    Raises:
        UsageError: it is missing, or no tensor.
    """
    if not isinstance(state.get(name), Tensor):
        raise UsageError(f"this is not {what}: the tensor {name} is missing")
    return tuple(state[name].shape)


def count(state: State, prefix: str) -> int:
    """How many children a list of modules has: the numbers after ``prefix`` and a dot."""
    found = (re.match(re.escape(prefix) + r"\.(\d+)\.", name) for name in state)
    return len({match[1] for match in found if match})


def fill(
    build: Callable[[], Module],
    state: State,
    *,
    what: str,
    prefix: str = "",
    ignore: Collection[str] = (),
) -> Module:
    """Build a module around copies of the tensors of ``state``, in float32.

    Args:
        build: makes the module; it is called without memory for its numbers.
        state: names to tensors; its own tensors are not changed and not kept.
        what: "the flow of ...", for the error.
        prefix: what the names in ``state`` have before the module's own.
        ignore: prefixes of tensors that are there and not wanted.

    Raises:
        UsageError: a tensor is missing, unknown, of another shape, or not finite.
    """
    with torch.device("meta"):
        module = build()
    wanted = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    found = {k: v for k, v in state.items() if not k.startswith(tuple(ignore))}
    _refuse("lacks", wanted.keys() - found.keys(), what)
    _refuse(
        "has no place for", found.keys() - wanted.keys(), what,
        "; name a prefix to ignore if they are not needed",
    )  # fmt: skip
    for name, place in wanted.items():
        tensor = found[name]
        if not isinstance(tensor, Tensor) or tensor.shape != place.shape:
            shape = tuple(getattr(tensor, "shape", ()))
            raise UsageError(f"{what}: {name} has the shape {shape}, not {tuple(place.shape)}")
        if not tensor.is_meta and not bool(tensor.isfinite().all()):
            raise UsageError(f"{what}: {name} holds NaN or infinity")
    copies = {
        k.removeprefix(prefix): found[k].detach().to(torch.float32, copy=True) for k in wanted
    }
    module.load_state_dict(copies, strict=True, assign=True)
    return module.eval()


def _refuse(verb: str, names: Collection[str], what: str, advice: str = "") -> None:
    if names:
        listed = ", ".join(sorted(names)[:_LISTED]) + (" ..." if len(names) > _LISTED else "")
        raise UsageError(f"{what} {verb} {len(names)} tensors: {listed}{advice}")


def read_state(path: str | Path) -> dict[str, Any]:
    """Read the tensors of a ``.pt`` file; no code in it is run.

    Numbers beside them, such as the step of a training, belong to no network and are left out.

    Raises:
        UsageError: the file is missing, damaged, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names a dozen kinds, among them pickle's and zip's
        reason = " ".join(str(error).split())[:160]
        raise UsageError(f"{path} is not a file of plain tensors: {reason}") from None
    if not isinstance(state, dict):
        raise UsageError(f"{path} holds a {type(state).__name__}, not tensors by name")
    return {name: value for name, value in state.items() if not isinstance(value, int | float)}
