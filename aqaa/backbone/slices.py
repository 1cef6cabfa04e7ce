"""Models read in stretches where they lie in their files, and the heads of such files.

Letters: N numbers of a stretch of a tensor, whatever the tensor's shape.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqaa.backbone.shards import tensor_files
from aqaa.errors import UsageError

# Wide numbers first, as safetensors lays them out.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMED = 3  # tensors a sentence names


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: its kind, its shape, the byte it begins at."""

    file: int
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def numbers(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """What they take."""
        return self.numbers * DTYPES[self.dtype].itemsize

    @property
    def kind(self) -> str:
        """Dtype and shape, which tensors must share."""
        return f"{self.dtype} {list(self.shape)}"


class OpenModel:
    """A model folder whose files stay open as long as ``stack``: its tensors, any stretch of one.

    Raises:
        UsageError: a weight file is missing or damaged.
    """

    def __init__(self, *, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.tensors: dict[str, Stored] = {}
        for path in tensor_files(folder):  # checks that a file is as long as it says
            file = stack.enter_context(open(path, "rb")).fileno()
            length = int.from_bytes(os.pread(file, 8, 0), "little")
            table = json.loads(os.pread(file, length, 8))
            table.pop("__metadata__", None)
            for name, entry in table.items():
                begin = 8 + length + entry["data_offsets"][0]
                self.tensors[name] = Stored(file, entry["dtype"], tuple(entry["shape"]), begin)

    def read(self, name: str, start: int, room: Tensor) -> Tensor:
        """Numbers of a tensor from ``start`` on, as many as ``room``, (N,), takes."""
        begin = self.tensors[name].begin + start * room.element_size()
        raw: Any = room.view(torch.uint8).numpy()
        view, done = memoryview(raw), 0
        while done < len(view):
            count = os.preadv(self.tensors[name].file, [view[done:]], begin + done)
            if count == 0:
                raise UsageError(f"{self.folder} is damaged: {name} is cut short")
            done += count
        return room


def opened_alike(folders: Sequence[Path], stack: ExitStack) -> list[OpenModel]:
    """Models that differ in nothing but their numbers.

    Raises:
        UsageError: tensors are missing, or have another shape or dtype (they are named), or hold
            no floating-point numbers.
    """
    models = [OpenModel(folder=folder, stack=stack) for folder in folders]
    first = models[0]
    for model in models[1:]:
        both = f"{model.folder} and {first.folder} differ in"
        if odd := sorted(model.tensors.keys() ^ first.tensors.keys()):
            raise UsageError(f"{both} {len(odd)} tensors, which one of them lacks: {_some(odd)}")
        kinds = {name: (stored.kind, model.tensors[name].kind)
                 for name, stored in first.tensors.items()}  # fmt: skip
        if odd := sorted(name for name, (one, other) in kinds.items() if one != other):
            one, other = kinds[odd[0]]
            raise UsageError(
                f"{both} shapes or dtypes of {len(odd)} tensors, {_some(odd)}: tensor {odd[0]} has "
                f"{other} and {one}"
            )
    if odd := sorted(n for n, stored in first.tensors.items() if stored.dtype not in DTYPES):
        kind = first.tensors[odd[0]].dtype
        raise UsageError(f"{first.folder}: {_some(odd)} holds {kind}, of which there is no mean")
    return models


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")


def laid_out(tensors: Mapping[str, Stored]) -> list[str]:
    """Names in the order in which safetensors lays tensors out."""
    kinds = [*DTYPES]
    return sorted(tensors, key=lambda name: (kinds.index(tensors[name].dtype), name))


def head(tensors: Mapping[str, Stored]) -> bytes:
    """The head of a safetensors file that holds these, to the byte as its own library writes it."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in laid_out(tensors):
        stored, end = tensors[name], begin + tensors[name].bytes
        offsets = [begin, end]
        table[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": offsets}
        begin = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
