"""Which ranks took which steps of a run, for who looks into it later: ``starts.json``.

A run may be taken up on another number of ranks; its settings name the last number alone.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import lightning.pytorch as pl

from aqaa.errors import UsageError
from aqaa.storage import read_json, write_json

STARTS = "starts.json"


@dataclass(frozen=True)
class Start:
    """From optimizer step ``step`` on, each of ``ranks`` took ``accumulate`` batches a step."""

    step: int
    ranks: int
    accumulate: int


class NoteStarts(pl.Callback):
    """Notes each time a run is begun or taken up; of what is taken again, the last time counts.

    Args:
        run: the run folder.
    """

    def __init__(self, *, run: Path) -> None:
        self._run = run

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add this start."""
        if trainer.is_global_zero:
            now = Start(trainer.global_step, trainer.world_size, trainer.accumulate_grad_batches)
            before = [start for start in read_starts(self._run) if start.step < now.step]
            write_json(self._run / STARTS, [asdict(start) for start in [*before, now]])


def read_starts(run: Path) -> list[Start]:
    """The starts of a run in the order of their steps; none where it has not trained.

    Raises:
        UsageError: the file is damaged.
    """
    path = run / STARTS
    if not path.is_file():
        return []
    try:
        return [Start(**start) for start in read_json(path)]
    except TypeError as error:
        raise UsageError(f"{path} is not a list of starts of this version: {error}") from None
