"""The state a resume needs, as a folder that is whole or absent: ``step_XXXXXXXX/``.

    state.json, state.safetensors      loops, schedules, data position, weights, moments, generators
    shard_00000.safetensors, ...       what each rank of a sharded run holds
    MANIFEST.sha256                    every file with its SHA-256, written last

A folder is written under a name with a dot, synced and renamed. Each file is hashed while it is
read; one wrong byte anywhere, and the folder is named on stderr and the one before it taken.

Letters: none; the tensors of a whole training state pass through.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.ranks import rank, ranks
from aqaa.runtime.agreement import any_rank
from aqaa.runtime.containers import decode, encode
from aqaa.runtime.shards import ShardFiles, optimizer_state, unsharded
from aqaa.runtime.states import read_manifest, saved_states, seal, set_aside, write_synced
from aqaa.runtime.tensor_file import HostCopy, check_hash, read_hashed, tensors_in, write_hashed
from aqaa.runtime.writer import Writer

FORMAT = 1
STATE = "state"
SHARDED = "sharded"  # the part of a state that tells of its shards


class StateFiles(CheckpointIO):
    """Lightning's way to our files: called on rank 0 alone, or on every rank of a sharded run.

    Args:
        keep: so many states are kept, the latest.
    """

    def __init__(self, *, keep: int) -> None:
        if keep < 1:
            raise UsageError(f"run.keep_states={keep}: at least one state must be kept")
        self._keep = keep
        self._state = HostCopy()
        self._shard = HostCopy()
        self.writer = Writer()

    def reserve(self, path: Path, *, state_bytes: int, shard_bytes: int, pinned: bool) -> None:
        """Take the memory that saves are copied into, in the thread, before the first of them.

        Args:
            path: of the states, for what is said if there is none.
            state_bytes: about what rank 0 will save.
            shard_bytes: about what this rank alone holds.
            pinned: the tensors are on a GPU.
        """

        def take() -> None:
            if rank() == 0:
                self._state.reserve(state_bytes, pinned=pinned)
            self._shard.reserve(shard_bytes, pinned=pinned)

        self.writer.begin(path, take)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Copy the state and return; a thread writes it.

        Args:
            checkpoint: plain containers and tensors.
            path: of :func:`step_folder`.
            storage_options: tensors that this rank alone holds, in a sharded run.
        """
        path = Path(path)
        tree, tensors = encode(checkpoint)
        sharded: Mapping[str, Tensor] | None = storage_options
        text = json.dumps({"format": FORMAT, "tree": tree}, allow_nan=False)
        self.writer.wait()  # the copies below are what it writes
        if rank() == 0:
            self._state.take(tensors)
        if sharded is not None:
            self._shard.take(sharded)
        self.writer.begin(path, lambda: self._write(path, text, sharded is not None))

    def _write(self, path: Path, text: str, sharded: bool) -> None:
        temporary = path.with_name(f".{path.name}.writing")
        try:
            temporary.mkdir(parents=True, exist_ok=sharded)
            if sharded:
                shard = f"shard_{rank():05d}.safetensors"
                line = f"{self._shard.write(temporary / shard)}  {shard}"
                write_synced(temporary / f".{shard}", line)
                os.replace(temporary / f".{shard}", temporary / f"{shard}.sha256")
            if rank() > 0:
                return
            lines = [
                f"{write_hashed(temporary / f'{STATE}.json', iter([text.encode()]))}  {STATE}.json",
                f"{self._state.write(temporary / f'{STATE}.safetensors')}  {STATE}.safetensors",
                *(self.writer.await_lines(temporary, ranks()) if sharded else ()),
            ]
            seal(temporary, path, sorted(lines, key=lambda line: line[66:]))
            self._retain(path)
        except BaseException:
            self._undo(temporary)
            raise

    @staticmethod
    def _undo(temporary: Path) -> None:
        """Free the disk; a rank other than the first leaves a mark, and the folder to the first."""
        if rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            return
        shard = temporary / f"shard_{rank():05d}.safetensors"
        with suppress(OSError):
            for path in (shard, shard.with_name(f".{shard.name}")):
                path.unlink(missing_ok=True)
            shard.with_suffix(".failed").touch()

    def _retain(self, latest: Path) -> None:
        for old in saved_states(latest.parent)[self._keep :]:
            if old != latest:
                gone = old.with_name(f".{old.name}.old")  # half-removed, it must not look whole
                os.replace(old, gone)
                shutil.rmtree(gone, ignore_errors=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The latest state below ``path`` that is whole, for a process with whole copies.

        Raises:
            UsageError: all of them are damaged.
        """
        state, shards = self.load(path)
        if shards is not None:
            about = state.pop(SHARDED)  # what an adapter leaves as it was is not in it
            weights = state["state_dict"] | dict(unsharded(about, shards))
            tied = about["tied"].items()
            weights |= {name: weights[first] for name, first in tied if first in weights}
            state["state_dict"] = weights
            state["optimizer_states"] = [optimizer_state(about, shards)]
        return state

    def load(self, path: str | Path) -> tuple[dict[str, Any], ShardFiles | None]:
        """The latest state below ``path`` that is whole, on every rank the same, and its shards.

        Raises:
            UsageError: all of them are damaged.
        """
        path = Path(path)
        damaged: list[Path] = []
        for folder in saved_states(path):
            state, problem = _try(folder)
            if not any_rank(bool(problem)):
                if rank() == 0:
                    set_aside(damaged)
                assert state is not None
                return state, ShardFiles(folder=folder) if SHARDED in state else None
            if problem:
                print(f"{problem}; taking the state before it", file=sys.stderr, flush=True)
            damaged.append(folder)
        names = ", ".join(folder.name for folder in damaged)
        raise UsageError(
            f"every saved state in {path} is damaged ({names}): remove {path} to begin this run "
            f"again"
        )

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove one state."""
        shutil.rmtree(path)


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a folder, every byte of it checked; ranks share the shards among them.

    Raises:
        UsageError: it is damaged, or of another version of this format.
    """
    digests = read_manifest(folder)
    name = f"{STATE}.json"
    content = json.loads(bytes(read_hashed(folder / name, digests.get(name, "")).numpy()))
    if content["format"] != FORMAT:
        raise UsageError(f"{folder} is of format {content['format']}: this version reads {FORMAT}")
    name = f"{STATE}.safetensors"
    tensors = tensors_in(read_hashed(folder / name, digests.get(name, "")))
    shards = sorted(name for name in digests if name.startswith("shard_"))
    for name in shards[rank() :: ranks()]:  # each rank its own, where they are as many as then
        check_hash(folder / name, digests[name])
    state: dict[str, Any] = decode(content["tree"], tensors)
    return state


def _try(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The state of a folder, or what is wrong with it."""
    try:
        return read_state(folder), ""
    except UsageError as error:
        return None, str(error)
