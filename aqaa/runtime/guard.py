"""Two ways a run goes wrong without a word, and what makes it speak: no number, no progress.

Letters: none; the only tensor here is a scalar loss.
"""

import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from aqaa.errors import NotANumber, UsageError
from aqaa.runtime.dumps import Trouble, place, write_dump
from aqaa.runtime.last_resort import LastResort
from aqaa.runtime.launch import rank_told
from aqaa.runtime.strategy import gradient_norm

HANG = 70  # exit code of a rank that the watchdog ended; sysexits' "internal error"
_SEVERAL_S, _OUTSIDE_S = 1800.0, 3600.0


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
        outside_s: seconds for all of what :meth:`outside` is told of; None: an hour, or never.
    """

    def __init__(self, *, run: Path, after_s: float | None, outside_s: float | None = None) -> None:
        for name, value in (("hang_after_s", after_s), ("hang_outside_s", outside_s)):
            if value is not None and value <= 0:
                raise UsageError(f"run.{name}={value}: give seconds, or null")
        self._run = run
        self._after_s = after_s
        self._outside_s = outside_s
        self._place: Trouble | None = None
        self._doing = ""
        self._limit_s = 0.0
        self._beat_at = 0.0
        self._over: threading.Event | None = None

    @contextmanager
    def outside(self, doing: str, *, several: bool) -> Iterator[None]:
        """Watch what goes on around the steps, such as ``loading`` or ``exporting``, as a whole.

        Args:
            doing: its name.
            several: whether there are other ranks that may keep this one waiting.
        """
        self._doing, self._place = doing, None
        self._watch_for(self._outside_s or (_OUTSIDE_S if several else None))
        try:
            yield
        finally:
            self._stop()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to watch steps."""
        self._place = place(trainer, 0)
        self._watch_for(self._after_s or (_SEVERAL_S if trainer.world_size > 1 else None))

    def _watch_for(self, limit_s: float | None) -> None:
        """Watch with this limit from now on; None: do not."""
        self._stop()
        if limit_s is None:
            return
        self._limit_s, self._beat_at = limit_s, time.monotonic()
        self._over, last = threading.Event(), LastResort(code=HANG)
        self._put_off(last)  # the thread may never get to run
        threading.Thread(target=self._watch, args=(self._over, last), daemon=True).start()

    def _stop(self) -> None:
        if self._over is not None:
            self._over.set()
            self._over = None

    def _watch(self, over: threading.Event, last: LastResort) -> None:
        while not over.wait(min(1.0, self._limit_s / 4)):
            if time.monotonic() - self._beat_at > self._limit_s:
                self._end()
            self._put_off(last)
        last.cancel()

    def _put_off(self, last: LastResort) -> None:
        """Where C code keeps the watching thread from running too, the last resort acts."""
        why = "C code kept Python from running"
        last.put_off(3 * self._limit_s + 5, f"{self._found(why)[0]}: {why}")

    def _found(self, why: str) -> tuple[str, Trouble | None]:
        """Who hangs and where, in words and as a dump has it."""
        if self._place is None:
            return f"rank {rank_told()} hangs while {self._doing}", None
        found = replace(self._place, why=why)
        where = f"at step {found.step} in batch {_listed(found.batches)}"
        return f"rank {found.rank} of {found.ranks} hangs {where}", found

    def _end(self) -> None:
        why = f"nothing moved for {self._limit_s:g} s"
        where, found = self._found(why)
        told = f"aqaa: {where}: {why}; the stacks of its threads:"
        print(told, file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        try:
            if found is not None:
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
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """The same; Lightning tears nothing down after an error."""
        self.teardown(trainer, pl_module, "fit")


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
