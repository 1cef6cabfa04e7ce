"""The weighted mean of models (paper Eq. 3: 5 SFT 1, 5 SFT 2, 1 DPO, over 11), slice by slice.

Memory does not depend on the models' size: slices are read where they lie in the files, and what
comes of them is hashed and written while the next ones are summed.

Letters: N numbers of one slice of a tensor, whatever the tensor's shape.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqaa.backbone.blocks import Block, MeanFlow
from aqaa.backbone.shards import SHARD_BYTES, shard_name
from aqaa.backbone.slices import DTYPES, StoredModel, check_alike, head, laid_out
from aqaa.errors import UsageError
from aqaa.storage import write_text

PART, DIGEST = ".part", ".sha256"  # behind a weight file's name while the merge is not whole
_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_LEAST, _MOST = 1e-100, 1e100  # between which weights may add up


@dataclass(frozen=True)
class Rows:
    """Rows ``start`` to ``stop`` of every table with ``table_rows``, and their own weights."""

    table_rows: int
    start: int
    stop: int
    weights: list[float]


@dataclass(frozen=True)
class Merged:
    """The names in every weight file, the files' SHA-256, and how much there is.

    ``read`` is the SHA-256 of every file of every model.
    """

    files: dict[str, list[str]]
    hashes: dict[str, str]
    parameters: int
    total_bytes: int
    read: list[Mapping[Path, str]]


def merge_weights(
    models: Sequence[StoredModel],
    weights: Sequence[float],
    folder: Path,
    *,
    rows: Rows | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Merged:
    """Write the weighted mean of models into files that are still to be given their names.

    Args:
        models: what is averaged.
        weights: one each.
        folder: gets NAME.part and NAME.sha256 for every weight file; those that a cut merge of the
            same models has left there are kept if their hash is right.
        rows: rows with weights of their own.
        dtype: ``float32``, ``bfloat16`` or ``float16``, whatever the models have (None: theirs,
            which must be alike).
        shard_bytes: size of a weight file.

    Raises:
        UsageError: names, shapes or dtypes differ (the tensors are named), a file is damaged, or
            the weights are unfit.
    """
    for given in (weights, *([rows.weights] if rows else [])):
        check_weights(given, len(models))
    check_models(models, dtype)
    kinds = {name: (_NAMES[dtype] if dtype else stored.dtype, stored.shape)
             for name, stored in models[0].tensors.items()}  # fmt: skip
    sizes = {name: models[0].tensors[name].bytes_as(kind) for name, (kind, _) in kinds.items()}
    files = {file: laid_out(kinds, names) for file, names in _shards(sizes, shard_bytes).items()}
    found = {stored.dtype for model in models for stored in model.tensors.values()}
    with ExitStack() as stack:
        flow = MeanFlow(
            models=models, dtypes=found | {kind for kind, _ in kinds.values()}, stack=stack
        )
        disk = stack.enter_context(ThreadPoolExecutor(1))
        settled: Future[None] | None = None
        hashes = {}
        for file, names in files.items():
            if not (hashed := _kept(folder, file)):
                blocks = (
                    block for name in names
                    for block in _blocks(name, kinds[name], weights, rows, flow.block)
                )  # fmt: skip
                hashed, settle = _write(folder, file, head(kinds, names), flow.means(blocks))
                if settled:
                    settled.result()
                settled = disk.submit(settle)  # while the next file is summed
            hashes[file] = hashed
        read = flow.hashes()
        if settled:
            settled.result()
    numbers = sum(stored.numbers for stored in models[0].tensors.values())
    return Merged(files, hashes, numbers, sum(sizes.values()), read)


def check_weights(weights: Sequence[float], models: int) -> None:
    """Refuse weights that give no mean."""
    if len(weights) != models or not models:
        raise UsageError(f"{models} models and {len(weights)} weights: give one weight each")
    if not (all(w >= 0 for w in weights) and _LEAST < sum(weights) < _MOST):
        raise UsageError(
            f"merge weights {[*weights]} must be finite, not negative and not all zero"
        )


def check_models(models: Sequence[StoredModel], dtype: str | None = None) -> None:
    """Refuse, as :func:`merge_weights` does, models whose tensors differ; no number is read."""
    if dtype is not None and dtype not in _NAMES:
        raise UsageError(f"dtype={dtype} is none of {', '.join(_NAMES)}")
    check_alike(models, dtypes=dtype is None)


def _shards(sizes_bytes: Mapping[str, int], shard_bytes: int) -> dict[str, list[str]]:
    """Which tensors go into which file."""
    shards: list[list[str]] = [[]]
    held = 0
    for name in sorted(sizes_bytes):
        if shards[-1] and held + sizes_bytes[name] > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += sizes_bytes[name]
    return {shard_name(number, len(shards)): names for number, names in enumerate(shards)}


def _blocks(
    name: str,
    kind: tuple[str, tuple[int, ...]],
    weights: Sequence[float],
    rows: Rows | None,
    most: int,
) -> Iterator[Block]:
    """The blocks of a tensor, one after the other, of ``most`` numbers."""
    dtype, shape = kind
    numbers = torch.Size(shape).numel()
    stretches = [(0, numbers, weights)]
    if rows is not None and len(shape) == 2 and shape[0] == rows.table_rows:
        begin, end = (row * shape[1] for row in (rows.start, rows.stop))
        stretches = [(0, begin, weights), (begin, end, rows.weights), (end, numbers, weights)]
    for first, last, given in stretches:
        for start in range(first, last, most):
            yield Block(name, start, min(most, last - start), DTYPES[dtype], given)


def _kept(folder: Path, file: str) -> str:
    """The hash of a weight file that an earlier call has finished, '' if it is not there whole."""
    part, digest = folder / f"{file}{PART}", folder / f"{file}{DIGEST}"
    if not (part.is_file() and digest.is_file()):
        return ""
    with open(part, "rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    return found if found == digest.read_text() else ""


def _write(
    folder: Path, file: str, begin: bytes, means: Iterator[Tensor]
) -> tuple[str, Callable[[], None]]:
    """Write a weight file; its hash, and what brings it to the disk with its hash beside it."""
    hashed = hashlib.sha256(begin)
    handle = open(folder / f"{file}{PART}", "wb", buffering=0)  # noqa: SIM115 (settle closes it)
    handle.write(begin)
    for mean in means:
        data: Any = mean.view(torch.uint8).numpy()
        hashed.update(data)
        _write_all(handle, data)

    def settle() -> None:
        with handle:
            os.fsync(handle.fileno())
        write_text(folder / f"{file}{DIGEST}", hashed.hexdigest())

    return hashed.hexdigest(), settle


def _write_all(handle: Any, data: Any) -> None:
    view, done = memoryview(data), 0
    while done < len(view):  # unbuffered, a write may stop early
        done += handle.write(view[done:])
