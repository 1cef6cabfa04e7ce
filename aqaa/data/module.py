"""The one Lightning data module: batches by step number, so that a resume only has to count."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from math import ceil
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from aqaa.errors import UsageError
from aqaa.ranks import ranks, total


class Batches(Protocol):
    """A source of batches; ``batch(step)`` is a pure function of the source's seed and the step."""

    def batch(self, step: int) -> Any:
        """Training batch number ``step``, counted from zero."""

    def validation(self) -> list[Any]:
        """The fixed batches of the periodic check."""


class _Turns(IterableDataset):
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


def shares(weights: Sequence[float], whole: float, batches: int) -> list[float]:
    """What the losses of a step's batches count for, so that its mean is that of one big batch.

    Lightning divides each loss by the batches of a rank and averages over the ranks; a loss is a
    mean over its batch's own weight.

    Args:
        weights: of some of the step's batches, which get their shares.
        whole: weight of the step, over all ranks.
        batches: of the step, over all ranks.
    """
    return [weight * batches / whole if whole else 1.0 for weight in weights]


class _Steps:
    """Batches of a loader, each told its share of the optimizer step that it is part of.

    It looks a step ahead, and asks all ranks for the weight of the step once.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        accumulate: int,
        weight_of: Callable[[Any], float],
        device: torch.device,
    ) -> None:
        self._loader = loader
        self._accumulate = accumulate
        self._weight_of = weight_of
        self._device = device

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        while step := list(islice(batches, self._accumulate)):
            weights = [self._weight_of(batch) for batch in step]
            mine = torch.tensor(sum(weights), dtype=torch.float64, device=self._device)
            found = shares(weights, float(total(mine)), self._accumulate * ranks())
            for batch, share in zip(step, found, strict=True):
                yield batch._replace(share=share)


class DataModule(pl.LightningDataModule):
    """Feeds a source to the trainer, in one order for any number of ranks and workers.

    At optimizer step s with A batches a step, rank r of R takes the batches s A R + a R + r, for
    a = 0 .. A-1: together those that one rank alone takes in a step with A R batches. Where a stage
    has ``weight_of(batch)``, they come with the share of the step that each has.

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

    def train_dataloader(self) -> Iterable[Any]:
        """Training batches from where the optimizer stands; ranks take turns, one batch each."""
        trainer = self.trainer
        stride = 1 if trainer is None else trainer.world_size
        turns = _Turns(self.source, start=self.number(0), stride=stride, repeat=self._repeat)
        loader = DataLoader(turns, batch_size=None, num_workers=self._workers)
        weight_of = getattr(getattr(trainer, "lightning_module", None), "weight_of", None)
        if weight_of is None or self._accumulate * stride == 1:
            return loader
        assert trainer is not None
        device = trainer.strategy.root_device
        return _Steps(loader, accumulate=self._accumulate, weight_of=weight_of, device=device)

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
