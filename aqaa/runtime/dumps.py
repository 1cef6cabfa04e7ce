"""What a run was doing when it went wrong, as files to be opened later: ``dumps/step_XXXXXXXX/``.

A rank leaves ``rank_00000.json`` (why, step, numbers of its batches in the data's order) and, where
memory can still be trusted, ``rank_00000.safetensors`` with the batches themselves.

Letters: none; tensors of any shape pass through.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.ranks import rank, ranks
from aqaa.runtime.containers import decode, encode
from aqaa.states import step_folder
from aqaa.storage import load_tensors, read_json, save_tensors, write_json

DUMPS = "dumps"


@dataclass(frozen=True)
class Trouble:
    """A step that went wrong, on one rank.

    ``batches`` are numbers: the data's ``batch(number)`` makes each again.
    """

    why: str
    step: int
    batches: list[int]
    rank: int
    ranks: int


def place(trainer: pl.Trainer, batch_idx: int) -> Trouble:
    """Where a run stands as batch ``batch_idx`` begins, should the step go wrong."""
    module: Any = trainer.datamodule  # type: ignore[attr-defined]
    micro = batch_idx % trainer.accumulate_grad_batches
    numbers = [module.number(i) for i in range(micro + 1)] if module is not None else []
    return Trouble("", trainer.global_step, numbers, rank(), ranks())


def write_dump(run: Path, found: Trouble, batches: list[Any]) -> Path:
    """Leave a dump below a run folder; returns its folder.

    Args:
        run: the run folder.
        found: the trouble.
        batches: the batches of the step, empty if they must not be touched.
    """
    folder = step_folder(run / DUMPS, found.step)
    tree, tensors = encode([_plain(batch) for batch in batches])
    if tensors:
        save_tensors(folder / f"rank_{found.rank:05d}.safetensors", tensors)
    write_json(folder / f"rank_{found.rank:05d}.json", {**asdict(found), "tree": tree})
    return folder


def read_dump(folder: Path, rank: int = 0) -> tuple[Trouble, list[Any]]:
    """The trouble and the batches (dicts by field name) that :func:`write_dump` left.

    Raises:
        UsageError: there is no such dump, or it is damaged.
    """
    path = folder / f"rank_{rank:05d}.json"
    content = read_json(path)
    tensors = path.with_suffix(".safetensors")
    try:
        tree = content.pop("tree")
        batches = decode(tree, load_tensors(tensors) if tensors.exists() else {})
        return Trouble(**content), batches
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not a dump of this version: {error}") from None


def _plain(value: Any) -> Any:
    """Named tuples as dicts, so that a dump names its fields; what cannot be saved as its repr."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str | Tensor):
        return value
    return repr(value)
