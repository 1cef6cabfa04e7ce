"""Trainings of a tiny backbone that are cut and taken up, alone or as one of two gloo processes.

``torchrun -m tests.runtime.sharded FOLDER`` does all that needs two ranks in one launch.
"""

import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from aqaa.backbone.initial import write_initial
from aqaa.backbone.lora import Lora
from aqaa.backbone.step1 import Step1Config
from aqaa.runtime.checkpoint import StateFiles
from aqaa.runtime.guard import StopOnNonFinite, Watchdog
from aqaa.runtime.saving import SaveState, StopRequested
from aqaa.runtime.states import saved_states
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.stages.sft import Sft
from tests.runtime.two_ranks import LORA, Tokens, spied, strategy

STEPS = 6
CUT = 3


def write_tied(folder: Path) -> None:
    """A backbone whose table is input and output at once: one parameter under two names."""
    from tests.golden.make import ids

    config = Step1Config(
        vocab_size=ids().vocabulary.rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_attention_groups=2,
        tie_word_embeddings=True,
    )
    write_initial(folder, config=config, ids=ids(), row_std=0.5)


class AskAt(SaveState):
    """Asks for a stop at a step, on the last rank alone."""

    step = -1

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        last = trainer.global_rank == trainer.world_size - 1
        if trainer.global_step == self.step and last and not self.asked:
            signal.raise_signal(signal.SIGUSR1)
        super().on_train_batch_start(trainer, *args)


class Spoilt(Sft):
    """Its loss is finite, and from the third step on its gradient is not."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss + (loss * 0).sqrt() if self.global_step == 2 else loss


def train(
    run: Path, init: Path, zero: str, *, ranks: int, cut: int = -1, kind: type[Sft] = Sft,
    adapter: Lora | None = None, fails: bool = False,
) -> Any:  # fmt: skip
    """Losses of this rank's batches, from where the states below ``run`` stand."""
    import lightning.pytorch as pl

    from aqaa.data.module import DataModule
    from aqaa.runtime.strategy import gather_of

    pl.seed_everything(0, verbose=False)
    seen: dict[str, Any] = {"losses": []}
    settings = OptimizerSettings(lr=0.01, warmup_steps=2, schedule="cosine", weight_decay=0.1)
    states, files = run / "checkpoints", StateFiles(keep=1)
    saver = AskAt(files=files, folder=states, every_s=0 if fails else 1000)
    if fails and os.environ["RANK"] == "1":
        files.save_checkpoint = failing(files)  # type: ignore[method-assign]
    saver.step = cut
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy(zero) if ranks > 1 else "auto",
        precision="bf16-mixed" if zero == "nodes" else "32-true",
        max_steps=STEPS,
        accumulate_grad_batches=4 // ranks,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        logger=False,
        callbacks=[saver, StopOnNonFinite(run=run), Watchdog(run=run, after_s=None)],
        plugins=[files],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    stage = spied(kind, seen)(model=str(init), optimizer=settings, adapter=adapter)
    data = DataModule(Tokens(False), accumulate=4 // ranks)
    try:
        trainer.fit(stage, data, ckpt_path=states if saved_states(states) else None)
    except StopRequested as stop:
        assert stop.number == signal.SIGUSR1
        seen["stopped"] = trainer.global_step
    else:
        stage.export(run / "model", gather_of(trainer.strategy))
    return seen


def failing(files: StateFiles) -> Any:
    """Saves until the disk of this rank is full, which is in its third save."""
    real, saves = files.save_checkpoint, []

    def full(path: Path) -> str:
        path.write_bytes(b"half a shard")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(*args: Any, **kwargs: Any) -> None:
        saves.append(1)
        if len(saves) == 3:
            files._shard.write = full  # type: ignore[method-assign,assignment]
        real(*args, **kwargs)

    return save


def wait(trainer_files: Path) -> None:
    """Until rank 0 has named the state that both have written."""
    import time

    until = time.monotonic() + 60
    while not saved_states(trainer_files) and time.monotonic() < until:
        time.sleep(0.02)


def main() -> None:
    """Every training that needs two ranks."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    init, told = folder / "init", {}
    told["whole"] = train(folder / "whole", init, "zero3", ranks=2)
    told["whole_nodes"] = train(folder / "whole_nodes", init, "nodes", ranks=2)
    lora = folder / "lora_back"
    told["lora_back"] = train(lora, init, "zero3", ranks=2, cut=CUT, adapter=LORA)
    told["lora_on"] = train(folder / "lora_on", init, "zero3", ranks=2, adapter=LORA)
    for name, first, then in (
        ("same", "zero3", "zero3"), ("other", "zero3", "zero1"), ("nodes", "nodes", "nodes"),
    ):  # fmt: skip
        run = folder / name
        before = train(run, init, first, ranks=2, cut=CUT)
        wait(run / "checkpoints")
        if name == "same" and rank == 0:
            shutil.copytree(run / "checkpoints", folder / "back" / "checkpoints")
        after = train(run, init, then, ranks=2)
        told[name] = {**before, "losses": before["losses"] + after["losses"]}
    told["from_one"] = train(folder / "from_one", init, "zero3", ranks=2)
    try:
        train(folder / "nan", init, "zero3", ranks=2, kind=Spoilt)
    except ValueError as error:
        told["nan"] = str(error)
    try:
        train(folder / "full", init, "zero3", ranks=2, fails=True)
    except ValueError as error:
        told["full"] = str(error)
    (folder / f"told.{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
