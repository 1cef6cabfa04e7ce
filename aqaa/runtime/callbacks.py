"""What happens around the steps of a stage: progress, saving, stopping.

Letters: none; the only tensor here is a scalar loss.
"""

import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.runtime.log import MetricsFile

LAST = "last.ckpt"
_LINE_EVERY_S = 15.0


class ShowProgress(pl.Callback):
    """A bar on a terminal, else a line now and then: steps, rate, remaining time, loss."""

    def __init__(self, *, name: str) -> None:
        self._name = name
        self._bar: Progress | None = None
        self._task: Any = None
        self._printed_at = 0.0
        self._begun_at = 0.0
        self._begun_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a resumed run counts from where it stands."""
        self._begun_at = self._printed_at = time.monotonic()
        self._begun_step = trainer.global_step
        as_lines = os.environ.get("AQAA_PROGRESS") == "lines" or not sys.stdout.isatty()
        if trainer.is_global_zero and not as_lines:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self._task = self._bar.add_task(self._name, total=trainer.max_steps, note="")
            self._bar.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show where the run stands, on one rank."""
        if not trainer.is_global_zero:
            return
        now, step = time.monotonic(), trainer.global_step
        if self._bar is None and now - self._printed_at < _LINE_EVERY_S:
            return
        rate = (step - self._begun_step) / max(1e-9, now - self._begun_at)
        loss = float(outputs["loss"]) if isinstance(outputs, dict) else float(outputs)
        note = f"{step}/{trainer.max_steps} steps, {rate:.1f}/s, loss {loss:.3f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
            return
        left_s = (trainer.max_steps - step) / max(1e-9, rate)
        print(f"{self._name}: {note}, {int(left_s // 60)}:{int(left_s % 60):02d} left", flush=True)
        self._printed_at = now

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal as it was after an error too."""
        self.teardown(trainer, pl_module, "fit")


class StopRequested(Exception):
    """A stop was asked for, and what a resume needs is saved."""


class SaveState(pl.Callback):
    """Saves what a resume needs every so often, and once more before a stop that was asked for.

    A save happens just before a batch, when everything of the step before (average, figures,
    validation) is done, so the state is one that an unbroken run passes through.

    Args:
        folder: gets ``last.ckpt``, replaced as a whole.
        every_s: seconds between saves.
    """

    def __init__(self, *, folder: Path, every_s: float) -> None:
        self._path = folder / LAST
        self._every_s = every_s
        self._saved_at = 0.0
        self._begun_at = 0.0
        self._seconds_before = 0.0
        self._handlers: dict[int, Any] = {}
        self.stopping = False

    @property
    def seconds(self) -> float:
        """Seconds of training, over all resumes."""
        return self._seconds_before + time.monotonic() - self._begun_at

    def state_dict(self) -> dict[str, Any]:
        """The clock."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the clock of the cut run."""
        self._seconds_before = state_dict["seconds"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Forget the batch that is about to begin: Lightning counts it as half done."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for part in ("total", "current"):
            progress[part]["ready"] = progress[part]["completed"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock and listen for Ctrl-C and SIGTERM."""
        self._begun_at = self._saved_at = time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._ask_to_stop)

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        if self.stopping:
            raise KeyboardInterrupt  # asked twice: do not wait for the step
        self.stopping = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time; stop when asked."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        # Lightning guesses this count after a resume, wrongly; figures are logged under it.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        due = time.monotonic() - self._saved_at > self._every_s
        if due or self.stopping:
            self._save(trainer)
        if self.stopping:
            raise StopRequested

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.write()  # a resume keeps the figures of the steps before the saved state
        temporary = self._path.with_suffix(".writing")
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                os.replace(temporary, self._path)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(
                f"cannot write {self._path}: {reason}; make room and run the same command again, "
                f"it goes on from the state saved before"
            ) from error
        finally:
            if trainer.is_global_zero:
                temporary.unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back; Lightning tears nothing down after an error."""
        self.teardown(trainer, pl_module, "fit")


class StopOnNonFinite(pl.Callback):
    """Ends a run whose loss is no number, naming the step."""

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look at the loss."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and not math.isfinite(float(loss)):
            raise UsageError(
                f"the loss is {float(loss)} at step {trainer.global_step}: "
                f"lower optim.lr or look at the data"
            )
