"""Two ways a run goes wrong without a word, and what makes it speak: no number, no progress.

Letters: none; the only tensor here is a scalar loss.
"""

import faulthandler
import math
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from aqaa.errors import NotANumber, UsageError
from aqaa.runtime.dumps import Trouble, place, write_dump
from aqaa.runtime.strategy import gradient_norm

HANG = 70  # exit code of a rank that the watchdog ended; sysexits' "internal error"
_SEVERAL_S = 1800.0


class StopOnNonFinite(pl.Callback):
    """Ends a run whose loss or gradient is no number, before the step is taken where it can.

    It waits for the device once a step, for all losses of the step and the gradient together, and
    under ZeRO once more after the step, for the norm that DeepSpeed has found. A loss that is no
    number is seen before any step; a gradient alone, under ZeRO, when the step is taken.

    Args:
        run: the run folder, which gets the batches of the step.
    """

    def __init__(self, *, run: Path) -> None:
        self._run = run
        self._batches: list[Any] = []
        self._losses: list[Tensor] = []
        self._place: Trouble | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batches of the step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches, self._losses = [], []
        self._batches.append(batch)
        self._place = place(trainer, batch_idx)

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Keep the loss: who looks at it waits for the device."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Look at the losses, and at the gradient where it lies with the parameters."""
        if len(self._losses) < trainer.accumulate_grad_batches:
            return  # DeepSpeed is asked for a step after every batch
        found = [torch.stack(self._losses).sum()]
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if gradients:
            found.append(get_total_norm(gradients))
        values = torch.stack([value.float() for value in found]).tolist()
        for what, value in zip(("loss", "gradient's norm"), values, strict=False):
            self._check(what, value)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look at the gradient of a sharded step, which is known when it is taken."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._check("gradient's norm", gradient_norm(trainer.strategy))

    def _check(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        assert self._place is not None
        found = replace(self._place, why=f"the {what} is {value}")
        folder = write_dump(self._run, found, self._batches)
        raise NotANumber(
            f"{found.why} at step {found.step} in batch {_listed(found.batches)}, saved in "
            f"{folder}: lower optim.lr or look at the data"
        )


class Watchdog(pl.Callback):
    """Ends a rank that makes no progress, with its place and every thread's stack on stderr.

    Args:
        run: the run folder, which gets the numbers of the batches.
        after_s: seconds without progress; None: half an hour with several ranks, never with one.
    """

    def __init__(self, *, run: Path, after_s: float | None) -> None:
        if after_s is not None and after_s <= 0:
            raise UsageError(f"run.hang_after_s={after_s}: give seconds, or null")
        self._run = run
        self._after_s = after_s
        self._place: Trouble | None = None
        self._beat_at = 0.0
        self._over = threading.Event()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to watch."""
        if self._after_s is None and trainer.world_size > 1:
            self._after_s = _SEVERAL_S
        if self._after_s is None:
            return
        self._place = place(trainer, 0)
        self._beat_at = time.monotonic()
        self._over.clear()
        threading.Thread(target=self._watch, args=(self._after_s,), daemon=True).start()

    def _watch(self, after_s: float) -> None:
        while not self._over.wait(min(1.0, after_s / 4)):
            if time.monotonic() - self._beat_at > after_s:
                self._end(after_s)
            # Where C code keeps this thread from running too, faulthandler's own ends the process.
            faulthandler.dump_traceback_later(3 * after_s + 5, exit=True)

    def _end(self, after_s: float) -> None:
        assert self._place is not None
        found = replace(self._place, why=f"nothing moved for {after_s:g} s")
        print(
            f"aqaa: rank {found.rank} of {found.ranks} hangs at step {found.step} in batch "
            f"{_listed(found.batches)}: {found.why}; the stacks of its threads:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        try:
            write_dump(self._run, found, [])  # a GPU that hangs is not asked for tensors
        finally:
            os._exit(HANG)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Progress."""
        self._place, self._beat_at = place(trainer, batch_idx), time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Progress."""
        self._beat_at = time.monotonic()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Progress."""
        self._beat_at = time.monotonic()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Watch no more."""
        if self._after_s is not None:
            self._over.set()
            faulthandler.cancel_dump_traceback_later()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """The same; Lightning tears nothing down after an error."""
        self.teardown(trainer, pl_module, "fit")


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
