"""From a run, finished or cut, sharded or not, to a folder that transformers reads.

Letters: none; parameters pass one at a time, whatever their shape.
"""

import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor

from aqaa.backbone.saved import saved_model, started_from, trained
from aqaa.backbone.shards import INDEX, SHARD_BYTES, read_tensors, write_tensors
from aqaa.backbone.slices import StoredModel
from aqaa.errors import UsageError
from aqaa.lineage import IDS, MODEL, RECORD
from aqaa.runtime.tensor_file import check_hash
from aqaa.states import STATES, read_manifest, saved_states, step_folder, step_of
from aqaa.storage import atomic_folder, narrowed, verify_manifest

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
        like = Path(model or started_from(run))
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
    model = saved_model(run, state, start)
    return _ordered(start, model, trained(state).keys())


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


def _ordered(
    start: Path, model: StoredModel, trained: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model: as it was saved, or, where it was not trained, as it began."""
    for name, tensor in read_tensors(start):
        yield name, model.whole(name) if name in trained else tensor
