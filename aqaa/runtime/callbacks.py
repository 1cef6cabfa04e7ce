"""What is shown while a stage trains."""

from typing import Any

import lightning.pytorch as pl

from aqaa.progress import Bar


class ShowProgress(pl.Callback):
    """A bar on a terminal, else a line now and then: steps, rate, remaining time, loss."""

    def __init__(self, *, name: str) -> None:
        self._name = name
        self._bar: Bar | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, on one rank; a resumed run counts from where it stands."""
        if trainer.is_global_zero:
            begun, total = trainer.global_step, int(trainer.max_steps)
            self._bar = Bar(self._name, total, unit="steps", begun=begun)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show where the run stands."""
        if self._bar is not None and self._bar.due():  # reading a loss waits for the device
            loss = float(outputs["loss"]) if isinstance(outputs, dict) else float(outputs)
            # Lightning gives a batch's part of its step; shown is the mean over the batch.
            loss *= trainer.accumulate_grad_batches / (getattr(batch, "share", 0) or 1)
            self._bar.update(trainer.global_step, f"loss {loss:.3f}")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal as it was after an error too."""
        self.teardown(trainer, pl_module, "fit")
