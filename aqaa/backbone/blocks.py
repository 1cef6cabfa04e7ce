"""Means of stored models block by block, in order, while what was read is hashed beside it.

Every thread works on memory that was taken once: a block's numbers are read, summed and hashed
where they lie. How much there is depends on neither the models' size nor their number.

Letters: N numbers of a block, M models.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aqaa.backbone.digests import Digests
from aqaa.backbone.mean import mean, room_for
from aqaa.backbone.slices import DTYPES, Read, StoredModel

_SLICE = 1 << 15  # numbers summed at once, so that they stay in a core's own cache
_BLOCK = 1 << 18  # numbers read at once, at most
_MEMORY_BYTES = 40_000_000  # of all blocks that are on their way
_THREADS, _AHEAD = 8, 2  # that sum, at most; blocks that may wait beside those being summed


@dataclass(frozen=True)
class Block:
    """Numbers ``start`` to ``start + count`` of a tensor, as ``dtype``, and the models' weights."""

    name: str
    start: int
    count: int
    dtype: torch.dtype
    weights: Sequence[float]


class _Lane:
    """Memory for one block on its way: its numbers in every model, (M, bytes), and their mean."""

    def __init__(self, models: int, numbers: int, each_bytes: int) -> None:
        self.read = torch.empty(models, numbers * each_bytes, dtype=torch.uint8)
        self.mean = torch.empty(numbers * each_bytes, dtype=torch.uint8)
        self.room = room_for(min(numbers, _SLICE))


class MeanFlow:
    """Blocks in, their means out in the same order; ends with ``stack``.

    Args:
        models: what is averaged.
        dtypes: of everything that comes in or out, by name as files have them.
        stack: the threads end with it.
    """

    def __init__(
        self, *, models: Sequence[StoredModel], dtypes: Iterable[str], stack: ExitStack
    ) -> None:
        self._models = models
        self._digests = [Digests(model) for model in models]
        threads = min(_THREADS, os.cpu_count() or 1)
        each = max(DTYPES[name].itemsize for name in dtypes)
        lanes = threads + _AHEAD
        self.block = min(_BLOCK, max(1, _MEMORY_BYTES // (lanes * (len(models) + 1) * each)))
        self._free = [_Lane(len(models), self.block, each) for _ in range(lanes)]
        self._summing = stack.enter_context(ThreadPoolExecutor(threads))
        # One thread a model: bytes are hashed in their order.
        self._hashing = [stack.enter_context(ThreadPoolExecutor(1)) for _ in models]

    def means(self, blocks: Iterable[Block]) -> Iterator[Tensor]:
        """The mean of every block, (N,), good until the next is asked for."""
        begun: deque[tuple[_Lane, Future[_Summed], list[Future[None]]]] = deque()
        for block in blocks:
            if not self._free:
                yield from self._end(*begun.popleft())
            lane = self._free.pop()
            summed = self._summing.submit(self._sum, lane, block)
            begun.append((lane, summed, [
                pool.submit(_hash, digests, summed, number)
                for number, (pool, digests) in enumerate(
                    zip(self._hashing, self._digests, strict=True)
                )
            ]))  # fmt: skip
        while begun:
            yield from self._end(*begun.popleft())

    def _end(
        self, lane: _Lane, summed: "Future[_Summed]", hashed: list[Future[None]]
    ) -> Iterator[Tensor]:
        yield summed.result().mean
        for future in hashed:
            future.result()
        self._free.append(lane)

    def _sum(self, lane: _Lane, block: Block) -> "_Summed":
        """Read a block of every model that counts, and sum it."""
        out = lane.mean[: block.count * block.dtype.itemsize].view(block.dtype)
        parts, reads = [], []
        for number, (model, weight) in enumerate(zip(self._models, block.weights, strict=True)):
            found: list[Read] = []
            if weight:
                dtype = DTYPES[model.tensors[block.name].dtype]
                room = lane.read[number][: block.count * dtype.itemsize].view(dtype)
                found = model.read(block.name, block.start, room)
                parts.append((room, weight))
            reads.append(found)
        for at in range(0, block.count, _SLICE):
            here = slice(at, at + _SLICE)
            pieces = ((room[here], weight) for room, weight in parts)
            mean(pieces, sum(block.weights), out[here], lane.room)
        return _Summed(out, reads)

    def hashes(self) -> list[Mapping[Path, str]]:
        """SHA-256 of every file of every model; what was not read yet is read now."""
        pairs = zip(self._hashing, self._digests, strict=True)
        return [f.result() for f in [pool.submit(d.finished) for pool, d in pairs]]


@dataclass(frozen=True)
class _Summed:
    """A mean, (N,), and what was read of every model for it."""

    mean: Tensor
    reads: list[list[Read]]


def _hash(digests: Digests, summed: "Future[_Summed]", number: int) -> None:
    digests.take(summed.result().reads[number])
