"""The one Lightning data module: batches by step number, so that resuming is a matter of counting."""

from collections.abc import Iterator
from typing import Any, Protocol

import lightning.pytorch as pl
from torch.utils.data import DataLoader, IterableDataset


class Batches(Protocol):
    """A source of batches; ``batch(step)`` is a pure function of the source's seed and the step."""

    def batch(self, step: int) -> Any: ...
    def validation(self) -> list[Any]: ...


class _Steps(IterableDataset):
    """Batches from ``start`` on, without end."""

    def __init__(self, source: Batches, start: int) -> None:
        self._source = source
        self._start = start

    def __iter__(self) -> Iterator[Any]:
        step = self._start
        while True:
            yield self._source.batch(step)
            step += 1


class DataModule(pl.LightningDataModule):
    """Feeds a source to the trainer.

    Args:
        source: where batches come from.
        accumulate: batches an optimizer step takes, to find the place after a resume.
    """

    def __init__(self, source: Any, *, accumulate: int = 1) -> None:
        super().__init__()
        self.source = source
        self._accumulate = accumulate

    def train_dataloader(self) -> DataLoader:
        """Training batches from where the optimizer stands."""
        start = self.trainer.global_step * self._accumulate if self.trainer is not None else 0
        return DataLoader(_Steps(self.source, start), batch_size=None, num_workers=0)

    def val_dataloader(self) -> DataLoader:
        """The fixed validation batches."""
        return DataLoader(self.source.validation(), batch_size=None, num_workers=0)
