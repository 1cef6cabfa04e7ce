"""The backbone in a saved training state, of one process or of many ranks, read in stretches.

Letters: none; parameters of any shape are named, not read.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aqaa.backbone.slices import Stored, StoredModel, Stretch, table
from aqaa.errors import UsageError
from aqaa.lineage import PARENTS
from aqaa.states import FORMAT, MASTER, SHARDED, STATE
from aqaa.storage import read_json, tree_hash

_PREFIX = "decoder."  # what a stage of the backbone calls it
_MASTER_DTYPE = "F32"


def started_from(run: Path) -> Path:
    """The model that a run began with.

    Raises:
        UsageError: it began with none, or that one has changed since.
    """
    parents = read_json(run / PARENTS)
    if not isinstance(parents, dict) or "model" not in parents:
        raise UsageError(f"{run} starts from no model: it trains no backbone")
    start, then = Path(parents["model"]["path"]), parents["model"].get("hash")
    now = tree_hash(start) or tree_hash(start.parent)
    if then and now and now != then:
        raise UsageError(f"{start} has changed since {run} began with it")
    return start


def trained(state: Path) -> dict[str, Stored]:
    """The parameters of the backbone in a state, by their names in its model.

    Raises:
        UsageError: the state is of another version, or lacks a part of a parameter.
    """
    content = read_json(state / f"{STATE}.json")
    if content["format"] != FORMAT:
        raise UsageError(f"{state} is of format {content['format']}: this version reads {FORMAT}")
    tree = content["tree"]
    found = _sharded(state, tree[SHARDED]) if SHARDED in tree else _whole(state, tree)
    kept = ((name, stored) for name, stored in found if name.startswith(_PREFIX))
    return {name.removeprefix(_PREFIX): stored for name, stored in kept}


def _whole(state: Path, tree: dict[str, Any]) -> Iterator[tuple[str, Stored]]:
    """What one process saved: every parameter in one piece."""
    file = state / f"{STATE}.safetensors"
    held = {name: (dtype, shape, begin) for name, dtype, shape, begin in table(file)}
    for name, node in tree["state_dict"].items():
        dtype, shape, begin = held[node["~tensor"]]
        yield name, Stored(dtype, shape, (Stretch(0, math.prod(shape), file, begin),))


def _sharded(state: Path, about: dict[str, Any]) -> Iterator[tuple[str, Stored]]:
    """What many ranks saved: float32 masters, every rank's share in its own file."""
    held: dict[str, list[Stretch]] = {}
    for file in sorted(state.glob("shard_*.safetensors")):
        for full, _, shape, begin in table(file):
            key, name, start = full.split(":")
            if key == MASTER and shape[0]:
                stretch = Stretch(int(start), int(start) + shape[0], file, begin)
                held.setdefault(name, []).append(stretch)
    for name, shape in about["shapes"].items():
        parts = sorted(held.get(name, []), key=lambda part: part.start)
        ends = [0, *(part.stop for part in parts)]
        if [part.start for part in parts] != ends[:-1] or ends[-1] != math.prod(shape):
            raise UsageError(f"{state} lacks a part of {name}: shards of it are missing")
        yield name, Stored(_MASTER_DTYPE, tuple(shape), tuple(parts))


def saved_model(run: Path, state: Path, start: Path) -> StoredModel:
    """The model of a run as one of its states has it.

    Args:
        run: the run folder, for what is said.
        state: one of its saved states.
        start: the model it began with; what was not trained is as it is there.

    Raises:
        UsageError: the state holds no backbone, or another one than ``start``.
    """
    model, found = StoredModel.of(start), trained(state)
    if not found:
        raise UsageError(f"{run} trains no backbone: its model is written when it ends")
    if more := sorted(found.keys() - model.tensors.keys() - {"lm_head.weight"}):  # tied: twice
        raise UsageError(
            f"{run} has {more[0]}, which {start} has not: an adapter or another network is written "
            f"when the run ends"
        )
    for name in found.keys() & model.tensors.keys():
        mine, other = list(found[name].shape), list(model.tensors[name].shape)
        if mine != other:
            raise UsageError(f"{name} is {mine}, but {start} has {other}")
    tensors = {name: found.get(name, stored) for name, stored in model.tensors.items()}
    return StoredModel(state, tensors)
