"""The weighted mean of models (paper Eq. 3: 5 SFT 1, 5 SFT 2, 1 DPO, over 11), slice by slice.

Memory does not depend on the models' size: slices are read where they lie in the files, and what
comes of them is hashed and written while the next ones are summed.

Letters: N numbers of one slice of a tensor, whatever the tensor's shape.
"""

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqaa.backbone.shards import SHARD_BYTES, shard_name
from aqaa.backbone.slices import DTYPES, OpenModel, Stored, head, laid_out, opened_alike
from aqaa.errors import UsageError
from aqaa.storage import write_text

PART, DIGEST = ".part", ".sha256"  # behind a weight file's name while the merge is not whole
_BLOCK, _SLICE = 1 << 18, 1 << 16  # numbers a thread hands on at once; numbers summed at once
_CUT = (1 << 29) - 1  # bits that float64 has and float32 has not
_THREADS, _AHEAD = 8, 2  # at most; blocks that may wait beside those that are being summed


@dataclass(frozen=True)
class Rows:
    """Rows ``start`` to ``stop`` of every table with ``table_rows``, and their own weights."""

    table_rows: int
    start: int
    stop: int
    weights: list[float]


@dataclass(frozen=True)
class Merged:
    """The names in every weight file, the files' SHA-256, and how much there is."""

    files: dict[str, list[str]]
    hashes: dict[str, str]
    parameters: int
    total_bytes: int


def room_for(numbers: int) -> Tensor:
    """Memory for :func:`mean` to work in, taken once: (2, N) of float64."""
    return torch.empty(2, numbers, dtype=torch.float64)


def mean(
    parts: Iterable[tuple[Tensor, float]], total_weight: float, out: Tensor, room: Tensor
) -> None:
    """Weighted mean of (N,) tensors, summed in float64 and rounded once.

    Args:
        parts: tensors and their weights.
        total_weight: what the sum is divided by.
        out: (N,), gets it.
        room: of :func:`room_for` N or more.
    """
    total, term = room[:, : len(out)]
    for number, (tensor, weight) in enumerate(parts):
        # Not one fused operation: machines that have it would round otherwise than those without.
        product = (term if number else total).copy_(tensor)
        if weight != 1:
            product.mul_(weight)
        if number:
            total.add_(product)
    total.div_(total_weight)
    if out.dtype == torch.float16:
        out.numpy()[:] = total.numpy()  # torch would go by float32 and round twice
        return
    if out.dtype == torch.bfloat16:
        _to_odd(total, term)
    out.copy_(total)


def _to_odd(exact: Tensor, room: Tensor) -> None:
    """Cut (N,) float64 to the bits of float32, the last one set where something was cut off.

    Torch goes to bfloat16 by float32. Of numbers cut like this it makes what one rounding would; a
    number beside a tie is not rounded onto it first. (Below 1e-38 float32 has fewer bits.)
    """
    bits, low = exact.view(torch.int64), room.view(torch.int64)
    torch.bitwise_and(bits, _CUT, out=low)
    low.add_(_CUT)  # carries where there is anything
    bits.bitwise_or_(low).bitwise_and_(~_CUT)


def merge_weights(
    sources: Sequence[Path],
    weights: Sequence[float],
    folder: Path,
    *,
    rows: Rows | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Merged:
    """Write the weighted mean of model folders into files that are still to be given their names.

    Args:
        sources: folders with one weight file or several.
        weights: one each.
        folder: gets NAME.part and NAME.sha256 for every weight file; those that a cut merge of the
            same models has left there are kept if their hash is right.
        rows: rows with weights of their own.
        shard_bytes: size of a weight file.

    Raises:
        UsageError: names, shapes or dtypes differ (the tensors are named), a file is damaged, or
            the weights are unfit.
    """
    for given in (weights, *([rows.weights] if rows else [])):
        check_weights(given, len(sources))
    threads = min(_THREADS, os.cpu_count() or 1)
    with ExitStack() as stack:
        models = opened_alike(sources, stack)
        tensors = models[0].tensors
        files = _shards(tensors, shard_bytes)
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        hashes = {}
        for file, names in files.items():
            if not (found := _kept(folder, file)):
                jobs = (job for name in names for job in _jobs(models, name, weights, rows))
                blocks = _in_order(pool, jobs, threads + _AHEAD)
                begin = head({name: tensors[name] for name in names})
                found = _write(folder, file, begin, blocks)
            hashes[file] = found
    numbers = sum(stored.numbers for stored in tensors.values())
    return Merged(files, hashes, numbers, sum(stored.bytes for stored in tensors.values()))


def check_weights(weights: Sequence[float], models: int) -> None:
    """Refuse weights that give no mean."""
    if len(weights) != models or not models:
        raise UsageError(f"{models} models and {len(weights)} weights: give one weight each")
    if not all(0 <= w < math.inf for w in weights) or sum(weights) == 0:
        raise UsageError(
            f"merge weights {[*weights]} must be finite, not negative and not all zero"
        )


def check_tensors(sources: Sequence[Path]) -> None:
    """Refuse, as :func:`merge_weights` does, models whose tensors differ; nothing else is read."""
    with ExitStack() as stack:
        opened_alike(sources, stack)


def _shards(tensors: dict[str, Stored], shard_bytes: int) -> dict[str, list[str]]:
    """Which tensors go into which file, in the order in which they lie there."""
    shards: list[list[str]] = [[]]
    held = 0
    for name in sorted(tensors):
        if shards[-1] and held + tensors[name].bytes > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += tensors[name].bytes
    return {
        shard_name(number, len(shards)): laid_out({name: tensors[name] for name in names})
        for number, names in enumerate(shards)
    }


Job = Callable[[], Tensor]


def _jobs(
    models: Sequence[OpenModel], name: str, weights: Sequence[float], rows: Rows | None
) -> Iterator[Job]:
    """The blocks of a tensor, one after the other."""
    stored = models[0].tensors[name]
    stretches = [(0, stored.numbers, weights)]
    if rows is not None and len(stored.shape) == 2 and stored.shape[0] == rows.table_rows:
        begin, end = (row * stored.shape[1] for row in (rows.start, rows.stop))
        after = (end, stored.numbers, weights)
        stretches = [(0, begin, weights), (begin, end, rows.weights), after]

    def job(start: int, count: int, given: Sequence[float]) -> Job:
        return lambda: _block(models, name, start, count, given)

    for first, last, given in stretches:
        for start in range(first, last, _BLOCK):
            yield job(start, min(_BLOCK, last - start), given)


def _block(
    models: Sequence[OpenModel], name: str, start: int, count: int, weights: Sequence[float]
) -> Tensor:
    """The mean of numbers ``start`` to ``start + count`` of a tensor; weights of 0 read nothing."""
    out = torch.empty(count, dtype=DTYPES[models[0].tensors[name].dtype])
    used = [(model, weight) for model, weight in zip(models, weights, strict=True) if weight]
    read = torch.empty(min(count, _SLICE), dtype=out.dtype)
    room = room_for(len(read))
    for at in range(0, count, _SLICE):
        piece = out[at : at + _SLICE]
        here = read[: len(piece)]
        parts = ((model.read(name, start + at, here), weight) for model, weight in used)
        mean(parts, sum(weights), piece, room)
    return out


def _in_order(pool: ThreadPoolExecutor, jobs: Iterator[Job], most: int) -> Iterator[Tensor]:
    """Results of jobs in their order; at most so many are there at any time."""
    begun: deque[Future[Tensor]] = deque()
    for job in jobs:
        begun.append(pool.submit(job))
        if len(begun) == most:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def _kept(folder: Path, file: str) -> str:
    """The hash of a weight file that an earlier call has finished, '' if it is not there whole."""
    part, digest = folder / f"{file}{PART}", folder / f"{file}{DIGEST}"
    if not (part.is_file() and digest.is_file()):
        return ""
    with open(part, "rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    return found if found == digest.read_text() else ""


def _write(folder: Path, file: str, begin: bytes, blocks: Iterator[Tensor]) -> str:
    """Write a weight file down to the disk, then its hash beside it."""
    hashed = hashlib.sha256(begin)
    with open(folder / f"{file}{PART}", "wb") as handle:
        handle.write(begin)
        for block in blocks:
            data: Any = block.view(torch.uint8).numpy()
            hashed.update(data)
            handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    write_text(folder / f"{file}{DIGEST}", hashed.hexdigest())
    return hashed.hexdigest()
