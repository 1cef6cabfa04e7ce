"""Codes on their way into a store: appended batch by batch, whole after any kill.

A part is one share of an extraction. ``linguistic.bin`` and ``semantic.bin`` grow first and are
synced; then ``done.jsonl`` gets a line a clip: its key, how many codes of each book, a checksum,
the size of its file. What no such line claims was never written: a process that goes on cuts it
off. A clip that is there twice counts as it was encoded last. ``bad.jsonl`` lists what the last
process could not hear.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqaa.data.manifest import read_manifest, write_manifest
from aqaa.errors import UsageError
from aqaa.signals import CodePair
from aqaa.storage import read_json, write_json

IDENTITY = "part.json"
DONE = "done.jsonl"
BAD = "bad.jsonl"
LOCK = "lock"
BOOKS = ("linguistic", "semantic")
_ID = np.dtype("<i4")
Codes = tuple[NDArray[np.int32], NDArray[np.int32]]


class Part:
    """A part that is being filled; one process at a time holds it.

    Args:
        folder: of the part, made where it is missing.
        identity: what decides its codes; a part of another identity is begun anew.

    Raises:
        UsageError: another process is filling it.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT
        self._files = {name: os.open(self.folder / name, flags, 0o666) for name in _names()}
        try:
            # Of this process alone: reading processes outlive a killed one by some seconds.
            fcntl.lockf(self._files[LOCK], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise UsageError(f"another process is at work in {self.folder}") from None
        (self.folder / BAD).unlink(missing_ok=True)  # whoever holds the part tries them again
        self.discarded = 0
        path = self.folder / IDENTITY
        if path.is_file() and read_json(path) != identity:
            self.discarded = sum(1 for _ in _lines(self.folder))
            self._cut(0, dict.fromkeys(BOOKS, 0))
        if not path.is_file() or read_json(path) != identity:
            write_json(path, identity)
        self.done: dict[str, int] = {}  # sizes of files by key
        self._recover()

    def _recover(self) -> None:
        """Cut off what the last process left unfinished."""
        claimed, counts = 0, dict.fromkeys(BOOKS, 0)
        sizes = {book: os.fstat(self._files[_bin(book)]).st_size for book in BOOKS}
        for record, end in _lines(self.folder):
            more = {book: counts[book] + record[book] for book in BOOKS}
            if any(more[book] * _ID.itemsize > sizes[book] for book in BOOKS):
                break
            claimed, counts = end, more
            self.done[record["key"]] = record["bytes"]
        self._cut(claimed, counts)

    def _cut(self, claimed_bytes: int, counts: dict[str, int]) -> None:
        os.ftruncate(self._files[DONE], claimed_bytes)
        for book, count in counts.items():
            os.ftruncate(self._files[_bin(book)], count * _ID.itemsize)
        for file in self._files.values():
            os.lseek(file, 0, os.SEEK_END)

    def append(
        self,
        batch: Iterable[tuple[str, CodePair]],
        sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Add the codes of some clips; they are on the disk when this returns.

        Args:
            batch: codes by key.
            sizes: of the clips' files by key, in bytes.
        """
        written = {book: b"" for book in BOOKS}
        lines = []
        for key, pair in batch:
            codes = {book: np.array(getattr(pair, book), _ID).tobytes() for book in BOOKS}
            record = {"key": key, **{b: len(c) // _ID.itemsize for b, c in codes.items()}}
            self.done[key] = sizes.get(key, 0)
            crc = _checksum(*codes.values())
            lines.append(json.dumps({**record, "crc": crc, "bytes": self.done[key]}))
            for book in BOOKS:
                written[book] += codes[book]
        for book in BOOKS:
            self._write(_bin(book), written[book])
        self._write(DONE, "".join(f"{line}\n" for line in lines).encode())

    def _write(self, name: str, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._files[name], data) :]
            os.fsync(self._files[name])
        except OSError as error:
            raise UsageError(f"cannot write {self.folder / name}: {error.strerror}") from None

    def tell_bad(self, bad: Iterable[Mapping[str, str]]) -> None:
        """List what cannot be heard: key, file and reason of each."""
        write_manifest(self.folder / BAD, map(dict, bad))

    def close(self) -> None:
        """Let go of the part."""
        for file in self._files.values():
            os.close(file)
        self._files = {}

    def __enter__(self) -> "Part":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_part(folder: str | Path) -> Iterator[tuple[str, Codes]]:
    """Key and codes of every clip of a part, each once.

    Raises:
        UsageError: the codes are not those that were written.
    """
    folder = Path(folder)
    books = {book: (folder / _bin(book)).read_bytes() for book in BOOKS}
    begin = dict.fromkeys(BOOKS, 0)
    last = {record["key"]: end for record, end in _lines(folder)}
    for record, place in _lines(folder):
        codes = {}
        for book in BOOKS:
            end = begin[book] + record[book] * _ID.itemsize
            codes[book], begin[book] = books[book][begin[book] : end], end
        if _checksum(*codes.values()) != record["crc"]:
            raise UsageError(
                f"{folder} is damaged at {record['key']}: remove it and tokenize that part again"
            )
        linguistic, semantic = (np.frombuffer(codes[book], _ID) for book in BOOKS)
        if last[record["key"]] == place:
            yield record["key"], (linguistic, semantic)


def read_bad(folder: str | Path) -> list[dict[str, str]]:
    """Key, file and reason of every clip that a part or a store has no codes of."""
    path = Path(folder) / BAD
    return read_manifest(path) if path.is_file() else []


def _lines(folder: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Records of done.jsonl and where each ends, up to the first that is cut or damaged."""
    end = 0
    for line in (folder / DONE).read_bytes().splitlines(keepends=True):
        end += len(line)
        try:
            record = json.loads(line)
            whole = line.endswith(b"\n") and set(record) == {"key", "crc", "bytes", *BOOKS}
        except (ValueError, TypeError):
            return
        if not whole:
            return
        yield record, end


def _names() -> tuple[str, ...]:
    return (DONE, LOCK, *(_bin(book) for book in BOOKS))


def _bin(book: str) -> str:
    return f"{book}.bin"


def _checksum(*parts: bytes) -> int:
    found = 0
    for part in parts:
        found = zlib.crc32(part, found)
    return found
