"""SHA-256 of files that are read for something else: hashed from the bytes that are there already.

Letters: none; files as bytes.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from aqaa.backbone.slices import Read, StoredModel

_CHUNK_BYTES = 1 << 20


class Digests:
    """Hashes every file from its first byte to its last, once, in whatever order parts are read.

    Bytes that follow what was hashed are taken as they come. What lies between is read here, and
    what comes too late is not needed.

    Args:
        model: whose files these are.
    """

    def __init__(self, model: StoredModel) -> None:
        self._model = model
        self._running = {file: (hashlib.sha256(), 0) for file in model.files}
        self._room = torch.empty(_CHUNK_BYTES, dtype=torch.uint8)

    def take(self, reads: Iterable[Read]) -> None:
        """See what was read."""
        for read in reads:
            if read.begin >= self._running[read.file][1]:
                self._reach(read.file, read.begin)
                self._update(read.file, read.data)

    def finished(self) -> dict[Path, str]:
        """The hash of every file; what was not seen yet is read."""
        for file in self._running:
            self._reach(file, os.stat(file).st_size)
        return {file: running.hexdigest() for file, (running, _) in self._running.items()}

    def _reach(self, file: Path, end: int) -> None:
        while (at := self._running[file][1]) < end:
            room = self._room[: min(end - at, _CHUNK_BYTES)]
            self._model.read_bytes(file, at, room)
            self._update(file, room)

    def _update(self, file: Path, data: torch.Tensor) -> None:
        running, at = self._running[file]
        raw: Any = data.numpy()
        running.update(raw)
        self._running[file] = running, at + len(raw)
