"""The state a resume needs, as a folder that is whole or absent: ``step_XXXXXXXX/``.

    state.json, state.safetensors      loops, schedules, data position, weights, moments, generators
    shard_00000.safetensors, ...       what each rank of a sharded run holds
    shards.json                        which of them holds what
    MANIFEST.sha256                    every file with its SHA-256, written last

A folder is written under a name with a dot, synced and renamed. A rank reads only the shards that
it needs, once, and each file is hashed while it is read; one wrong byte anywhere, and the folder is
named on stderr and the one before it taken, by all ranks. What there is to be read rank 0 says: a
file system of a network may show the others an older list.

Letters: none; the tensors of a whole training state pass through.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.ranks import from_first, rank, ranks
from aqaa.runtime.agreement import any_rank
from aqaa.runtime.containers import decode, encode
from aqaa.runtime.shard_files import LIST, ShardFiles, Stretch, held, needed, runs, shard_name
from aqaa.runtime.shards import optimizer_state, unsharded
from aqaa.runtime.tensor_file import HostCopy, read_hashed, tensors_in, write_hashed
from aqaa.runtime.writer import Writer
from aqaa.states import (
    FORMAT,
    SHARDED,
    STATE,
    read_manifest,
    saved_states,
    seal,
    set_aside,
    write_synced,
)


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
        holds = None
        if sharded is not None:
            self._shard.take(sharded)
            holds = held((name, tensor.numel()) for name, tensor in sharded.items())
        self.writer.begin(path, lambda: self._write(path, text, holds))

    def _write(self, path: Path, text: str, holds: dict[str, Any] | None) -> None:
        temporary = path.with_name(f".{path.name}.writing")
        try:
            temporary.mkdir(parents=True, exist_ok=holds is not None)
            if holds is not None:
                shard = temporary / shard_name(rank())
                told = {"sha256": self._shard.write(shard), "holds": holds}
                write_synced(shard.with_name(f".{shard.name}"), json.dumps(told))
                os.replace(shard.with_name(f".{shard.name}"), shard.with_suffix(".json"))
            if rank() > 0:
                return
            texts, found = {f"{STATE}.json": text}, {}
            if holds is not None:
                shards = self.writer.await_told(temporary, ranks())
                found = {shard_name(n): shard["sha256"] for n, shard in enumerate(shards)}
                texts[LIST] = json.dumps(runs(shard["holds"] for shard in shards))
            for name, content in texts.items():
                found[name] = write_hashed(temporary / name, iter([content.encode()]))
            name = f"{STATE}.safetensors"
            found[name] = self._state.write(temporary / name)
            seal(temporary, path, [f"{found[name]}  {name}" for name in sorted(found)])
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
        shard = temporary / shard_name(rank())
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

    def load(
        self, path: str | Path, wanted: Iterable[Stretch] | None = None
    ) -> tuple[dict[str, Any], ShardFiles | None]:
        """The latest state below ``path`` that is whole, on every rank the same, and its shards.

        Args:
            path: folder of states.
            wanted: what this rank reads of the shards (None: everything).

        Raises:
            UsageError: all of them are damaged.
        """
        path = Path(path)
        damaged: list[Path] = []
        for folder in from_first(saved_states(path) if rank() == 0 else []):
            found, problem = _try(folder, wanted)
            if not any_rank(bool(problem)):
                if rank() == 0:
                    set_aside(damaged)
                assert found is not None
                return found
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


def read_state(
    folder: Path, wanted: Iterable[Stretch] | None = None
) -> tuple[dict[str, Any], ShardFiles | None]:
    """The state of a folder, and of its shards those that hold what is wanted; every rank asks.

    Raises:
        UsageError: a byte of what was read is wrong, or it is of another version of this format.
    """
    digests = _manifest(folder)

    def content(name: str) -> Tensor:
        return read_hashed(folder / name, digests.get(name, ""))

    told = json.loads(bytes(content(f"{STATE}.json").numpy()))
    if told["format"] != FORMAT:
        raise UsageError(f"{folder} is of format {told['format']}: this version reads {FORMAT}")
    state: dict[str, Any] = decode(told["tree"], tensors_in(content(f"{STATE}.safetensors")))
    if SHARDED not in state:
        return state, None
    listed = json.loads(bytes(content(LIST).numpy()))
    shards = range(sum(name.startswith("shard_") for name in digests))
    mine = shards if wanted is None else needed(listed, wanted, shards)
    return state, ShardFiles(shards=(tensors_in(content(shard_name(n))) for n in mine))


def _manifest(folder: Path) -> dict[str, str]:
    """The hashes of a state's files, as rank 0 reads them."""
    found: dict[str, str] = {}
    problem = ""
    if rank() == 0:
        try:
            found = read_manifest(folder)
        except UsageError as error:
            problem = str(error)
    found, problem = from_first((found, problem))
    if problem:
        raise UsageError(problem)
    return found


def _try(
    folder: Path, wanted: Iterable[Stretch] | None
) -> tuple[tuple[dict[str, Any], ShardFiles | None] | None, str]:
    """The state of a folder and its shards, or what is wrong with it."""
    try:
        return read_state(folder, wanted), ""
    except UsageError as error:
        return None, str(error)
