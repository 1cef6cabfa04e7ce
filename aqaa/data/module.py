"""The one Lightning data module: batches by step number, so that a resume only has to count."""

from collections.abc import Iterator
from itertools import count
from typing import Any, Protocol

import lightning.pytorch as pl
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from aqaa.data.collate import TokenBatch
from aqaa.errors import UsageError


class Batches(Protocol):
    """A source of batches; ``batch(step)`` is a pure function of the source's seed and the step."""

    def batch(self, step: int) -> Any:
        """Training batch number ``step``, counted from zero."""

    def validation(self) -> list[Any]:
        """The fixed batches of the periodic check."""


class _Steps(IterableDataset):
    """Every ``stride``-th batch from ``start`` on, without end; ``repeat`` keeps to a few.

    Loader workers take turns; the loader asks them in turn, so the order stays.
    """

    def __init__(self, source: Batches, *, start: int, stride: int, repeat: int | None) -> None:
        self._source = source
        self._start = start
        self._stride = stride
        self._repeat = repeat

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in count(self._start + number * self._stride, workers * self._stride):
            yield self._source.batch(step % self._repeat if self._repeat else step)


class _Share(IterableDataset):
    """One rank's part of a few batches; ranks take turns, and all have equally many.

    Where the last turn is not whole, the ranks left over go through a batch that counts nothing:
    a sharded model is only whole while every rank runs it.
    """

    def __init__(self, batches: list[Any], *, rank: int, ranks: int) -> None:
        self._batches = batches[rank::ranks]
        if len(self._batches) < -(-len(batches) // ranks):
            last = batches[-1]
            self._batches.append(last.silent() if isinstance(last, TokenBatch) else last)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


class DataModule(pl.LightningDataModule):
    """Feeds a source to the trainer, in one order for any number of ranks and workers.

    At optimizer step s with A batches a step, rank r of R takes the batches s A R + a R + r, for
    a = 0 .. A-1: together those that one rank alone takes in a step with A R batches.

    Args:
        source: where batches come from.
        accumulate: batches an optimizer step takes, to find the place after a resume.
        repeat: train on the first so many batches again and again (None: on all). Lightning's own
            overfit_batches takes a prefix of an epoch, and a source by step number has no epochs.
        workers: processes that make batches ahead (0: none).
    """

    def __init__(
        self, source: Any, *, accumulate: int = 1, repeat: int | None = None, workers: int = 0
    ) -> None:
        super().__init__()
        if repeat is not None and repeat < 1:
            raise UsageError(f"{repeat} batches cannot be repeated: give one or more, or null")
        if workers < 0:
            raise UsageError(f"loader_workers={workers} must be 0 or more")
        self.source = source
        self._accumulate = accumulate
        self._repeat = repeat
        self._workers = workers

    def train_dataloader(self) -> DataLoader:
        """Training batches from where the optimizer stands; ranks take turns, one batch each."""
        taken = self.trainer.global_step * self._accumulate if self.trainer is not None else 0
        rank, ranks = self._rank()
        start = taken * ranks + rank
        steps = _Steps(self.source, start=start, stride=ranks, repeat=self._repeat)
        return DataLoader(steps, batch_size=None, num_workers=self._workers)

    def val_dataloader(self) -> DataLoader:
        """This rank's share of the fixed validation batches."""
        rank, ranks = self._rank()
        share = _Share(self.source.validation(), rank=rank, ranks=ranks)
        return DataLoader(share, batch_size=None, num_workers=0)

    def _rank(self) -> tuple[int, int]:
        """This rank, and how many there are."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
