"""Models read in stretches where they lie in their files, and the heads of such files.

Letters: N numbers of a stretch of a tensor, whatever the tensor's shape.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aqaa.backbone.shards import tensor_files
from aqaa.errors import UsageError

# Wide numbers first, as safetensors lays them out.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMED = 3  # tensors a sentence names
_OPEN = 32  # files of a model that are open at once


@dataclass(frozen=True)
class Stretch:
    """Numbers ``start`` to ``stop`` of a tensor, which lie in a file from byte ``begin`` on."""

    start: int
    stop: int
    file: Path
    begin: int


@dataclass(frozen=True)
class Stored:
    """One tensor: its kind, its shape, and where its numbers lie, in order and without a gap."""

    dtype: str
    shape: tuple[int, ...]
    stretches: tuple[Stretch, ...]

    @property
    def numbers(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """Dtype and shape, which tensors must share."""
        return f"{self.dtype} {list(self.shape)}"

    def bytes_as(self, dtype: str) -> int:
        """What its numbers take as another dtype."""
        return self.numbers * DTYPES[dtype].itemsize


@dataclass(frozen=True)
class Read:
    """Bytes that were read, (bytes,) of uint8, and where they lay."""

    file: Path
    begin: int
    data: Tensor


Opened = Callable[[Path], FileIO]


def opener() -> Opened:
    """Opens files for reading and keeps the latest open, which go with it.

    Of a state that many ranks saved, no process may hold all files open. One that is let go of here
    stays open for whoever reads it just then.
    """
    return lru_cache(maxsize=_OPEN)(lambda path: FileIO(path, "rb"))


@dataclass(frozen=True)
class StoredModel:
    """A model that is not in memory: its tensors, any stretch of one.

    ``folder`` names it in a sentence.
    """

    folder: Path
    tensors: dict[str, Stored]
    opened: Opened = field(default_factory=opener, compare=False)

    @classmethod
    def of(cls, folder: Path) -> "StoredModel":
        """The model of a folder.

        Raises:
            UsageError: a weight file is missing or damaged.
        """
        found = {}
        for path in tensor_files(folder):  # checks that a file is as long as it says
            for name, dtype, shape, begin in table(path):
                whole = Stretch(0, math.prod(shape), path, begin)
                found[name] = Stored(dtype, shape, (whole,))
        return cls(folder, found)

    @property
    def files(self) -> list[Path]:
        """Every file that something of it lies in."""
        return sorted({s.file for stored in self.tensors.values() for s in stored.stretches})

    def read(self, name: str, start: int, room: Tensor) -> list[Read]:
        """Fill ``room``, (N,), with numbers of a tensor from ``start`` on; what was read where.

        Raises:
            UsageError: a file ends too early, or cannot be read.
        """
        each, end = room.element_size(), start + len(room)
        data = room.view(torch.uint8)
        found = []
        for part in self.tensors[name].stretches:
            first, last = max(start, part.start), min(end, part.stop)
            if first < last:
                piece = data[(first - start) * each : (last - start) * each]
                found.append(Read(part.file, part.begin + (first - part.start) * each, piece))
        for one in found:
            self.read_bytes(one.file, one.begin, one.data)
        return found

    def whole(self, name: str) -> Tensor:
        """A tensor, in its shape."""
        stored = self.tensors[name]
        room = torch.empty(stored.numbers, dtype=DTYPES[stored.dtype])
        self.read(name, 0, room)
        return room.view(stored.shape)

    def read_bytes(self, file: Path, begin: int, room: Tensor) -> None:
        """Fill ``room``, (bytes,) of uint8, from byte ``begin`` of a file on.

        Raises:
            UsageError: it ends too early, or cannot be read.
        """
        raw: Any = room.numpy()
        view, done = memoryview(raw), 0
        try:
            handle = self.opened(file)
            while done < len(view):
                count = os.preadv(handle.fileno(), [view[done:]], begin + done)
                if count == 0:
                    raise UsageError(f"{file} is damaged: it is cut short")
                done += count
        except OSError as error:
            raise UsageError(f"cannot read {file}: {error.strerror}") from None


def table(path: Path) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    """Name, dtype, shape and first byte of every tensor in a safetensors file.

    Raises:
        UsageError: it is missing, damaged, or shorter than it says.
    """
    try:
        with safe_open(str(path), framework="pt"), open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            entries = json.loads(handle.read(length))
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    entries.pop("__metadata__", None)
    for name, entry in entries.items():
        begin = 8 + length + entry["data_offsets"][0]
        yield name, entry["dtype"], tuple(entry["shape"]), begin


def check_alike(models: Sequence[StoredModel], *, dtypes: bool = True) -> None:
    """Refuse models that differ in more than their numbers.

    Args:
        models: all are compared with the first.
        dtypes: these may not differ either.

    Raises:
        UsageError: tensors are missing, or have another shape or dtype (they are named), or hold
            no floating-point numbers.
    """
    first = models[0]
    for model in models[1:]:
        both = f"{model.folder} and {first.folder} differ in"
        if odd := sorted(model.tensors.keys() ^ first.tensors.keys()):
            raise UsageError(f"{both} {len(odd)} tensors, which one of them lacks: {_some(odd)}")
        pairs = {name: (stored, model.tensors[name]) for name, stored in first.tensors.items()}
        if odd := sorted(
            name
            for name, (one, other) in pairs.items()
            if one.shape != other.shape or (dtypes and one.dtype != other.dtype)
        ):
            mine, other = pairs[odd[0]]
            advice = "" if mine.shape != other.shape else "; dtype=bfloat16 rounds all to one"
            raise UsageError(
                f"{both} shapes or dtypes of {len(odd)} tensors, {_some(odd)}: tensor {odd[0]} has "
                f"{other.kind} and {mine.kind}{advice}"
            )
    for model in models:
        held = model.tensors
        if odd := sorted(name for name, stored in held.items() if stored.dtype not in DTYPES):
            found = f"{_some(odd)} holds {held[odd[0]].dtype}"
            raise UsageError(f"{model.folder}: {found}, of which there is no mean")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")


Kinds = Mapping[str, tuple[str, tuple[int, ...]]]  # dtype and shape by name


def laid_out(kinds: Kinds, names: Iterable[str]) -> list[str]:
    """Names in the order in which safetensors lays tensors out."""
    order = [*DTYPES]
    return sorted(names, key=lambda name: (order.index(kinds[name][0]), name))


def head(kinds: Kinds, names: Iterable[str]) -> bytes:
    """The head of a safetensors file that holds these, to the byte as its own library writes it."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in laid_out(kinds, names):
        dtype, shape = kinds[name]
        end = begin + math.prod(shape) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
