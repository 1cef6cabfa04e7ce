"""When the state of a run is saved, and how a run is stopped and taken up again.

Letters: none; tensors pass through.
"""

import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.runtime.agreement import largest
from aqaa.runtime.checkpoint import StateFiles
from aqaa.runtime.log import MetricsFile
from aqaa.runtime.randomness import random_states, restore_random
from aqaa.runtime.strategy import ShardedStrategy
from aqaa.states import step_folder

# Ctrl-C, what SLURM sends before the time is up, and what it and most others send to end a job.
_ASKS = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
_CANNOT_WRITE = 1000  # above every signal's number
_REST_BYTES = 1 << 20  # of a state beside weights and moments: generators, buffers, counts


class StopRequested(Exception):
    """A stop was asked for by a signal, and what a resume needs is on the disk."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class SaveState(pl.Callback):
    """Saves what a resume needs every so often, and once more before a stop that was asked for.

    A save happens just before a batch, when everything of the step before (average, figures,
    validation) is done, so the state is one that an unbroken run passes through. Several ranks
    agree on it by one number over gloo before every step: hosts wait for one another, no GPU does.

    Args:
        files: what writes and reads states.
        folder: gets one folder a state.
        every_s: seconds between saves.
    """

    def __init__(self, *, files: StateFiles, folder: Path, every_s: float) -> None:
        self._files = files
        self._folder = folder
        self._every_s = every_s
        self._saved_at = 0.0
        self._saved_step = -1
        self._begun_at = 0.0
        self._seconds_before = 0.0
        self._random: dict[str, Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._memory_due = True
        self.asked = 0

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
        """Add the random generators; forget the batch that is about to begin."""
        checkpoint["random"] = random_states()
        checkpoint["accumulate"] = trainer.accumulate_grad_batches
        names = {id(p): name for name, p in pl_module.named_parameters()}
        checkpoint["optimizer_names"] = [
            [names[id(p)] for p in group["params"] if id(p) in names]
            for group in trainer.optimizers[0].param_groups
        ]
        progress = _batch_progress(checkpoint)
        for part in ("total", "current"):
            progress[part]["ready"] = progress[part]["completed"]  # Lightning: half done

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Fit the counts to the batches a step takes now; keep the figures of the steps before."""
        self._random = checkpoint["random"]
        self._saved_step = checkpoint["global_step"]
        for counts in _batch_progress(checkpoint).values():
            if isinstance(counts, dict):
                for name, batches in counts.items():
                    steps = batches // checkpoint["accumulate"]
                    counts[name] = steps * trainer.accumulate_grad_batches
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.resume(self._saved_step)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock and listen for the signals that ask for a stop."""
        self._begun_at = self._saved_at = time.monotonic()
        for number in _ASKS:  # in the place of Lightning's own, which would requeue by itself
            self._handlers[number] = signal.signal(number, self._ask_to_stop)

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        if number == self.asked == signal.SIGINT:
            raise KeyboardInterrupt  # Ctrl-C twice: do not wait for the step
        self.asked = self.asked or number

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time; stop when asked."""
        if self._random is not None:  # as late as can be: building loaders draws numbers too
            restore_random(self._random)
            self._random = None
        if batch_idx % trainer.accumulate_grad_batches:
            return
        # Lightning guesses this count after a resume, wrongly; figures are logged under it.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if self._memory_due and trainer.optimizers[0].state:  # moments are there after a step
            self._memory_due = False
            self._reserve(trainer, pl_module)
        due = time.monotonic() - self._saved_at > self._every_s
        if not self._agreed(self.asked or int(due)):
            return
        self.asked = largest(self.asked)  # a signal reaches ranks at different steps
        if trainer.global_step != self._saved_step:
            self._agreed(wait=True)  # the copies of the save before are free
            self._save(trainer)
        if self.asked:
            self._agreed(wait=True)  # no rank leaves before rank 0 has sealed what all have written
            raise StopRequested(self.asked)

    def _reserve(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the thread take the memory for copies, which would hold up the first save."""
        strategy, moments = trainer.strategy, trainer.optimizers[0].state.values()
        if isinstance(strategy, ShardedStrategy):
            whole, mine = 0, _bytes(strategy.shard().values())
        else:
            whole, mine = _bytes(v for values in moments for v in values.values()), 0
            whole += _bytes(pl_module.state_dict().values())
        self._files.reserve(
            self._folder, state_bytes=whole + _REST_BYTES, shard_bytes=mine,
            pinned=strategy.root_device.type == "cuda",
        )  # fmt: skip

    def _agreed(self, value: int = 0, *, wait: bool = False) -> int:
        """The largest value of all ranks, which also learn here that one of them cannot write.

        Args:
            value: what this rank says.
            wait: until what is being written is on the disk.
        """
        problem = self._files.writer.problem(wait=wait)
        found = largest(value if problem is None else _CANNOT_WRITE)
        if found != _CANNOT_WRITE:
            return found
        self._files.writer.give_up()
        raise problem or UsageError(
            f"another rank cannot write its share of a state in {self._folder} and says why; the "
            f"same command goes on from the state saved before"
        )

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.write()  # a resume keeps the figures of the steps before the saved state
        trainer.save_checkpoint(step_folder(self._folder, trainer.global_step))
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See the last save to its end."""
        self._agreed(wait=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back; let a save that has begun come to its end."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        self._files.writer.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """The same; Lightning tears nothing down after an error."""
        self.teardown(trainer, pl_module, "fit")


def _bytes(values: Iterable[Any]) -> int:
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def _batch_progress(checkpoint: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return found
