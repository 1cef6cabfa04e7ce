"""A training small enough to be looked at: one layer, batches that name themselves, real Lightning.

Letters: none.
"""

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from aqaa.data.module import DataModule
from aqaa.runtime.guard import StopOnNonFinite, Watchdog
from aqaa.runtime.run import quiet_lightning


class Pair(NamedTuple):
    task: str
    x: Tensor
    ids: list[int]


class Source:
    """Batch ``number`` holds its number."""

    def batch(self, number: int) -> Pair:
        return Pair("add", torch.full((2, 3), number / 10), [number, number + 1])

    def validation(self) -> list[Pair]:
        return []


class Toy(pl.LightningModule):
    """One layer with dropout; ``plant(loss, batch)`` may spoil what it likes."""

    def __init__(self, plant: Callable[[Tensor, Pair], Tensor] = lambda loss, batch: loss) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.plant = plant
        self.losses: list[float] = []

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        loss = self.plant((self.layer(batch.x) - 1).pow(2).mean(), batch)
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def guarded(run: Path, after_s: float | None = None) -> list[pl.Callback]:
    return [StopOnNonFinite(run=run), Watchdog(run=run, after_s=after_s)]


def fit(
    toy: Toy, callbacks: list[Any], *, steps: int = 4, accumulate: int = 1, **more: Any
) -> pl.Trainer:
    """Train; ``more`` goes to the trainer, ``ckpt_path`` to its fit."""
    quiet_lightning()
    path = more.pop("ckpt_path", None)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    )
    trainer.fit(toy, DataModule(Source(), accumulate=accumulate), ckpt_path=path)
    return trainer


def stop_moving(loss: Tensor, batch: Pair) -> Tensor:
    if batch.ids[0] == 5:
        time.sleep(60)
    return loss


def sleep() -> None:
    time.sleep(60)


def hold() -> None:
    ctypes.PyDLL(None).sleep(60)  # as C code that does not let go of the interpreter


if __name__ == "__main__":  # `python -m tests.runtime.toy RUN`: a run that hangs in its sixth batch
    here = Path(sys.argv[1])
    if sys.argv[2:]:  # ... or while it loads, as the word says
        with Watchdog(run=here, after_s=None, outside_s=0.2).outside("loading", several=True):
            {"sleep": sleep, "hold": hold}[sys.argv[2]]()
    fit(Toy(stop_moving), guarded(here, after_s=1.0), accumulate=2)
