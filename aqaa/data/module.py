"""The one Lightning data module: batches by step number, so that a resume only has to count."""

from collections.abc import Iterator
from itertools import count
from math import ceil
from typing import Any, Protocol

import lightning.pytorch as pl
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

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
        self.validation_batches = 0
        self._accumulate = accumulate
        self._repeat = repeat
        self._workers = workers
        self._since = {"step": 0, "batches": 0}

    def number(self, micro: int) -> int:
        """Number of this rank's batch ``micro`` of the optimizer step that is being taken."""
        if self.trainer is None:
            return micro
        return self._taken() + micro * self.trainer.world_size + self.trainer.global_rank

    def _taken(self) -> int:
        """Batches that all ranks together took in the steps before, on whatever number of ranks."""
        assert self.trainer is not None
        steps = self.trainer.global_step - self._since["step"]
        return self._since["batches"] + steps * self._accumulate * self.trainer.world_size

    def state_dict(self) -> dict[str, int]:
        """Where the data stand; another number of ranks goes on from there."""
        assert self.trainer is not None
        return {"step": self.trainer.global_step, "batches": self._taken()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from where the cut run stood."""
        self._since = dict(state_dict)

    def train_dataloader(self) -> DataLoader:
        """Training batches from where the optimizer stands; ranks take turns, one batch each."""
        start, ranks = self.number(0), 1 if self.trainer is None else self.trainer.world_size
        steps = _Steps(self.source, start=start, stride=ranks, repeat=self._repeat)
        return DataLoader(steps, batch_size=None, num_workers=self._workers)

    def val_dataloader(self) -> DataLoader:
        """The fixed validation batches, or this rank's share where the stage sums over ranks.

        A sharded network runs on all ranks or on none, so every share is equally long: the first
        batches stand in for those that are not there, and are counted once.
        """
        batches = self.source.validation()
        self.validation_batches = len(batches)
        rank, ranks = self._place()
        if ranks > 1:
            turns = range(rank, ceil(len(batches) / ranks) * ranks, ranks)
            batches = [batches[turn % len(batches)] for turn in turns]
        return DataLoader(batches, batch_size=None, num_workers=0)

    def is_extra(self, batch_idx: int) -> bool:
        """Whether validation batch ``batch_idx`` of this rank only keeps the others company."""
        rank, ranks = self._place()
        return batch_idx * ranks + rank >= self.validation_batches

    def _place(self) -> tuple[int, int]:
        """This rank and how many share the validation batches."""
        trainer = self.trainer
        if trainer is None or not getattr(trainer.lightning_module, "sharded", False):
            return 0, 1
        return trainer.global_rank, trainer.world_size
