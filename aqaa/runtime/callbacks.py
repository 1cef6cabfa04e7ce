"""What is shown while a stage trains."""

import os
import sys
import time
from typing import Any

import lightning.pytorch as pl
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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
