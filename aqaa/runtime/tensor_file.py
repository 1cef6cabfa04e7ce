"""Tensors into a safetensors file by way of kept host memory, and back, hashed in the same pass.

The host memory is laid out as the file's data section: taking a copy is all a training step waits
for, and the file is then one header and one stretch of bytes.

Letters: none; tensors of any shape, as bytes.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.storage import sha256_file

_CHUNK_BYTES = 1 << 23
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class HostCopy:
    """A copy of named tensors in host memory that is allocated once and used again and again."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._header = b""
        self._bytes = 0

    def reserve(self, size_bytes: int, *, pinned: bool) -> None:
        """Take memory for a copy of this size now; a system gives it only where it is written."""
        if len(self._memory) < size_bytes:
            self._memory = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pinned)
            self._memory.zero_()

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors, from whatever device they are on; the copy before is gone.

        Raises:
            TypeError: a tensor is sparse, or of a kind that a safetensors file cannot hold.
        """
        for name, tensor in tensors.items():
            if tensor.dtype not in _NAMES or tensor.layout is not torch.strided or tensor.is_meta:
                raise TypeError(f"{name} is a tensor of {tensor.dtype}, {tensor.layout}, on "
                                f"{tensor.device}: it cannot be saved")
        # Wide elements first: every tensor then starts at a multiple of its element.
        order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        total = sum(tensors[name].nbytes for name in order)
        on_gpu = any(tensors[name].is_cuda for name in order)
        if len(self._memory) < total:
            self._memory = torch.empty(total, dtype=torch.uint8, pin_memory=on_gpu)
        table, begin = {}, 0
        for name in order:
            tensor = tensors[name]
            end = begin + tensor.nbytes
            place = self._memory[begin:end].view(tensor.dtype).view(tensor.shape)
            place.copy_(tensor, non_blocking=True)
            table[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
            begin = end
        if on_gpu:
            torch.cuda.synchronize()
        self._header, self._bytes = _padded(json.dumps(table).encode()), total

    def write(self, path: Path) -> str:
        """Write the copy as a safetensors file, down to the disk; returns its SHA-256."""
        return write_hashed(path, self._pieces())

    def _pieces(self) -> Iterator[bytes | memoryview]:
        yield len(self._header).to_bytes(8, "little") + self._header
        data = _bytes_of(self._memory)
        for begin in range(0, self._bytes, _CHUNK_BYTES):
            yield data[begin : min(begin + _CHUNK_BYTES, self._bytes)]


def _bytes_of(memory: Tensor) -> memoryview:
    data: Any = memory.numpy()
    return memoryview(data)


def _padded(header: bytes) -> bytes:
    return header + b" " * (-len(header) % 8)


def write_hashed(path: Path, pieces: Iterator[bytes | memoryview]) -> str:
    """Write pieces one after another, down to the disk; returns the SHA-256 of the file."""
    digest = hashlib.sha256()
    with open(path, "wb") as handle:
        for piece in pieces:
            digest.update(piece)
            handle.write(piece)
        handle.flush()
        os.fsync(handle.fileno())
    return digest.hexdigest()


def read_hashed(path: Path, digest: str) -> Tensor:
    """All bytes of a file, (bytes,) of uint8.

    Raises:
        UsageError: the file is missing, cannot be read, or is not the one that ``digest`` names.
    """
    found = hashlib.sha256()
    try:
        memory = torch.empty(path.stat().st_size, dtype=torch.uint8)
        view = _bytes_of(memory)
        with open(path, "rb", buffering=0) as handle:
            done = 0
            while count := handle.readinto(view[done : done + _CHUNK_BYTES]):
                found.update(view[done : done + count])
                done += count
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if done != len(memory) or found.hexdigest() != digest:
        raise UsageError(f"{path} is damaged: its SHA-256 is not the one in the manifest")
    return memory


def check_hash(path: Path, digest: str) -> None:
    """Read a file to its end and keep nothing.

    Raises:
        UsageError: as :func:`read_hashed`.
    """
    try:
        found = sha256_file(path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if found != digest:
        raise UsageError(f"{path} is damaged: its SHA-256 is not the one in the manifest")


def tensors_in(memory: Tensor) -> dict[str, Tensor]:
    """The tensors of a file of ours that :func:`read_hashed` read, as views of its bytes."""
    raw = _bytes_of(memory)
    start = 8 + int.from_bytes(raw[:8], "little")
    table = json.loads(bytes(raw[8:start]))
    found = {}
    for name, entry in table.items():
        begin, end = entry["data_offsets"]
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        flat = memory[start + begin : start + end]
        # An empty view at the very end may stand at an odd place.
        typed = flat.view(dtype) if math.prod(shape) else torch.empty(0, dtype=dtype)
        found[name] = typed.view(shape)
    return found
