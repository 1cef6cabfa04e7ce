"""From a run, finished or cut, sharded or not, to a folder that transformers reads.

Letters: none; parameters pass one at a time, whatever their shape.
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from aqaa.backbone.shards import INDEX, SHARD_BYTES, read_tensors, tensor_files, write_tensors
from aqaa.errors import UsageError
from aqaa.lineage import IDS, MODEL, PARENTS, RECORD
from aqaa.runtime.checkpoint import FORMAT, SHARDED, STATE
from aqaa.runtime.containers import decode
from aqaa.runtime.shard_files import ShardFiles
from aqaa.runtime.shards import unsharded
from aqaa.runtime.states import STATES, read_manifest, saved_states, step_folder, step_of
from aqaa.runtime.tensor_file import check_hash
from aqaa.storage import atomic_folder, narrowed, read_json, verify_manifest

_PREFIX = "decoder."  # what a stage of the backbone calls it
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export(
    *,
    source: str,
    out: str,
    step: int | None = None,
    model: str | None = None,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write the backbone of a run as a Hugging Face folder (`aqaa export`).

    A finished run gives its model, a cut one or a step that is named the saved state.

    One parameter and one file's worth of them are in memory, whatever the size of the model and
    however many ranks saved it.

    Args:
        source: the run folder.
        out: the folder to write, with its manifest.
        step: of a saved state (None: the end, or the latest state that is whole).
        model: folder a cut run started from (None: what its parents.json says).
        dtype: ``float32`` as saved, or ``bfloat16`` or ``float16``.
        shard_bytes: of a weight file.

    Returns:
        The folder.

    Raises:
        UsageError: no such state, a damaged one, or a run that trains something else.
    """
    if dtype not in _DTYPES:
        raise UsageError(f"dtype={dtype} is none of {', '.join(_DTYPES)}")
    run = Path(source)
    if step is None and (run / RECORD).is_file():
        like, tensors, what = run / MODEL, _finished(run), "the finished model"
    else:
        state = _state(run, step)
        like = Path(model or _started_from(run))
        tensors, what = _saved(run, like, state), f"step {step_of(state)}"
    with atomic_folder(out) as folder:
        for file in like.iterdir():
            if file.suffix == ".json" and file.name != INDEX:
                shutil.copy(file, folder / file.name)
        whole = ((name, narrowed(name, tensor, _DTYPES[dtype])) for name, tensor in tensors)
        write_tensors(folder, whole, shard_bytes=shard_bytes)
    print(f"{what} of {run}")
    return Path(out)


def _finished(run: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a finished run's model, every byte of it checked."""
    if not (run / MODEL / IDS).is_file():
        raise UsageError(f"{run} trains no backbone: only a backbone is exported")
    verify_manifest(run / MODEL)
    return read_tensors(run / MODEL)


def _saved(run: Path, start: Path, state: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a saved state, in the order of the model it started from."""
    names = [name for members in tensor_files(start).values() for name in members]
    saved, read = _parameters(state)
    _check(run, start, names, saved)
    return _ordered(start, saved, read)


def _state(run: Path, step: int | None) -> Path:
    """The state to export, every byte of it checked."""
    states = saved_states(run / STATES)
    if not states:
        raise UsageError(f"{run} holds no saved state: {run / STATES} is empty or not there")
    if step is not None:
        wanted = step_folder(run / STATES, step)
        if wanted not in states:
            known = ", ".join(str(step_of(state)) for state in states)
            raise UsageError(f"{run} holds no state of step {step}: there are {known}")
        _verify(wanted)
        return wanted
    for state in states:
        try:
            _verify(state)
            return state
        except UsageError as error:
            print(f"{error}; taking the state before it", file=sys.stderr, flush=True)
    raise UsageError(f"every saved state in {run / STATES} is damaged")


def _verify(state: Path) -> None:
    for name, digest in read_manifest(state).items():
        check_hash(state / name, digest)


def _started_from(run: Path) -> str:
    parents = read_json(run / PARENTS)
    if not isinstance(parents, dict) or "model" not in parents:
        raise UsageError(f"{run} starts from no model: only a backbone is exported")
    return str(parents["model"]["path"])


def _parameters(state: Path) -> tuple[set[str], Callable[[str], Tensor]]:
    """Names of the saved parameters, and how one is read; nothing is read yet."""
    content = read_json(state / f"{STATE}.json")
    if content["format"] != FORMAT:
        raise UsageError(f"{state} is of format {content['format']}: this version reads {FORMAT}")
    tree = content["tree"]
    opened = safe_open(state / f"{STATE}.safetensors", framework="pt")
    if SHARDED not in tree:
        places = {name: node["~tensor"] for name, node in tree["state_dict"].items()}
        return set(places), lambda name: opened.get_tensor(places[name])
    shapes: dict[str, list[int]] = decode(tree[SHARDED]["shapes"], {})
    files = ShardFiles.opened(state)

    def read(name: str) -> Tensor:
        return next(unsharded({"shapes": {name: shapes[name]}}, files))[1]

    return set(shapes), read


def _check(run: Path, start: Path, names: list[str], saved: set[str]) -> None:
    """Refuse a run whose parameters are not those of the model it started from."""
    trained = {name.removeprefix(_PREFIX) for name in saved if name.startswith(_PREFIX)}
    if not trained:
        raise UsageError(f"{run} trains no backbone: its model is written when it ends")
    if more := sorted(trained - set(names) - {"lm_head.weight"}):  # tied: saved twice
        raise UsageError(
            f"{run} has {more[0]}, which {start} has not: an adapter or another network is written "
            f"when the run ends"
        )


def _ordered(
    start: Path, saved: set[str], read: Callable[[str], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model: as it was saved, or, where it was not trained, as it began."""
    for name, tensor in read_tensors(start):
        found = read(_PREFIX + name) if _PREFIX + name in saved else tensor
        if found.shape != tensor.shape:
            raise UsageError(f"{name} is {list(found.shape)}, but {start} has {list(tensor.shape)}")
        yield name, found
