"""metrics.csv of a run: every logged figure by step, kept whole across a resume.

And the one door to wandb for what is no figure.
"""

import csv
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from aqaa.lineage import METRICS
from aqaa.storage import atomic_path

_WRITE_EVERY_S = 5.0


class MetricsFile(Logger):
    """Writes ``metrics.csv`` into the run folder: column ``step``, then one per figure."""

    def __init__(self, *, folder: str | Path) -> None:
        super().__init__()
        self._path = Path(folder) / METRICS
        self._rows: dict[int, dict[str, float]] = {}
        self._written_at = 0.0

    @property
    def name(self) -> str:
        """Nothing: there is one file a run."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: there is one file a run."""
        return ""

    def resume(self, step: int) -> None:
        """Keep the rows before ``step`` of an earlier, cut run."""
        if not self._path.is_file():
            return
        with open(self._path, newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                at = int(row.pop("step"))
                if at < step:
                    self._rows[at] = {k: float(v) for k, v in row.items() if v not in (None, "")}

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take the figures of one step."""
        values = {k: float(v) for k, v in metrics.items() if k != "epoch"}
        self._rows.setdefault(step or 0, {}).update(values)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def save(self) -> None:
        """Write the file, every few seconds at most."""
        if time.monotonic() - self._written_at > _WRITE_EVERY_S:
            self.write()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the file for good."""
        self.write()

    @rank_zero_only
    def write(self) -> None:
        """Write the file now."""
        if not self._rows:
            return
        names = sorted({name for row in self._rows.values() for name in row})
        with atomic_path(self._path) as temporary, open(temporary, "w", newline="") as handle:
            writer = csv.DictWriter(handle, ["step", *names], restval="")
            writer.writeheader()
            writer.writerows({"step": step, **row} for step, row in sorted(self._rows.items()))
        self._written_at = time.monotonic()


def log_answers(
    loggers: Iterable[Logger], rows: Sequence[Mapping[str, Any]], run: Path, step: int
) -> None:
    """Give the answers of a check to wandb, if it is among the loggers, with sound and picture.

    Args:
        loggers: of the run.
        rows: as :func:`aqaa.evaluation.agreement.hear_prompts` returns them.
        run: the run folder, where their sounds lie.
        step: optimizer steps taken so far.
    """
    from aqaa.audio.file import read_audio
    from aqaa.evaluation.agreement import COLUMNS, FOLDER
    from aqaa.evaluation.report_cards import mel_image

    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            data = []
            for row in rows:
                sound: list[Any] = [None, None]
                if row["answer"]:
                    heard = read_audio(run / FOLDER / row["answer"])
                    image = wandb.Image(mel_image(heard.samples))
                    sound = [wandb.Audio(heard.samples, sample_rate=heard.rate_hz), image]
                data.append([*(row[name] for name in COLUMNS), *sound])
            columns = [*COLUMNS, "sound", "mel"]
            logger.log_table("answers", columns=columns, data=data, step=step)
