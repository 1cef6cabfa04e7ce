"""Many lists of ids in two flat files, mapped into memory: what training reads.

``NAME.bin`` is all ids one after another, int32. ``NAME.idx`` says where each list begins, int64
throughout: magic, version, number of lists, number of ids, then one offset a list and the end.
All little-endian; offsets count ids.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aqaa.errors import UsageError

MAGIC = int.from_bytes(b"aqaa-idx", "little")
VERSION = 1
_HEADER = 4
_ID, _OFFSET = np.dtype("<i4"), np.dtype("<i8")


def write_flat(folder: Path, name: str, lists: Sequence[Sequence[int] | np.ndarray]) -> None:
    """Write ``NAME.bin`` and ``NAME.idx`` into a folder that is made as a whole."""
    ends = np.cumsum([0, *(len(ids) for ids in lists)], dtype=_OFFSET)
    header = np.array([MAGIC, VERSION, len(lists), ends[-1]], _OFFSET)
    np.concatenate([header, ends]).tofile(folder / f"{name}.idx")
    with open(folder / f"{name}.bin", "wb") as file:
        for ids in lists:
            file.write(np.asarray(ids, _ID).tobytes())


class Flat:
    """Reads what :func:`write_flat` wrote; only the pages that are asked for come into memory.

    Raises:
        UsageError: a file is missing, damaged, cut short, or of another version.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._offsets = _offsets(folder / f"{name}.idx")
        path, ids = folder / f"{name}.bin", int(self._offsets[-1])
        _check_size(path, ids * _ID.itemsize)
        # A file of no bytes cannot be mapped.
        self._ids = np.memmap(path, _ID, "r") if ids else np.zeros(0, _ID)

    def __reduce__(self) -> tuple:
        return Flat, (self._folder, self._name)  # a copy in another process maps the file again

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, place: int) -> np.ndarray:
        return self._ids[self._offsets[place] : self._offsets[place + 1]]


def _offsets(path: Path) -> np.ndarray:
    """Where the lists begin, and the end, of a checked index."""
    _check_size(path, _HEADER * _OFFSET.itemsize, at_least=True)
    whole = np.memmap(path, _OFFSET, "r", shape=(path.stat().st_size // _OFFSET.itemsize,))
    magic, version, lists, ids = whole[:_HEADER].tolist()
    if magic != MAGIC:
        raise UsageError(f"{path} is damaged or no index of ids: it does not begin as one")
    if version != VERSION:
        raise UsageError(f"{path} is of version {version}, not {VERSION}: tokenize again")
    _check_size(path, (_HEADER + lists + 1) * _OFFSET.itemsize)
    offsets = whole[_HEADER:]
    if offsets[0] != 0 or offsets[-1] != ids or bool((np.diff(offsets) < 0).any()):
        raise UsageError(f"{path} is damaged: its offsets do not rise from 0 to {ids}")
    return offsets


def _check_size(path: Path, size_bytes: int, *, at_least: bool = False) -> None:
    """Refuse a file that is missing, cut short or too long."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist: the store is incomplete, tokenize again")
    found = path.stat().st_size
    if found < size_bytes or (found > size_bytes and not at_least):
        raise UsageError(
            f"{path} is damaged: it has {found} bytes, not {size_bytes}; tokenize again"
        )
