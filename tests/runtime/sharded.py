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
from aqaa.runtime import checkpoint
from aqaa.runtime.agreement import any_rank
from aqaa.runtime.checkpoint import StateFiles
from aqaa.runtime.guard import StopOnNonFinite, Watchdog
from aqaa.runtime.saving import SaveState, StopRequested
from aqaa.runtime.shard_files import held
from aqaa.runtime.tensor_file import read_hashed
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.stages.sft import Sft
from aqaa.states import saved_states
from aqaa.storage import load_tensors
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
    settings = OptimizerSettings(
        lr=0.01, warmup_steps=2, schedule="cosine", weight_decay=0.1,
        new_rows_lr_ratio=None if adapter else 3.0,
    )  # fmt: skip
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
    data = DataModule(Tokens(), accumulate=4 // ranks)
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


def fall_back(folder: Path, good: Path) -> dict[str, Any]:
    """What this rank reads, and which state it gets, where a later one has a wrong byte in a shard.

    It is one that rank 1 alone reads; and rank 1 is shown a list of states that is empty yet.
    """
    rank, place = int(os.environ["RANK"]), folder / "spoilt"
    if rank == 0:
        for step in (CUT, 9):
            shutil.copytree(good, place / f"step_{step:08d}")
        shard = place / "step_00000009" / "shard_00001.safetensors"
        *most, last = shard.read_bytes()
        shard.write_bytes(bytes([*most, last ^ 1]))
    any_rank(False)
    seen: dict[str, list[str]] = {}

    def read(path: Path, digest: str) -> Any:
        seen.setdefault(path.parent.name, []).append(path.name)
        return read_hashed(path, digest)

    shards = load_tensors(good / f"shard_{rank:05d}.safetensors").items()
    wanted = [(name, *place) for name, place in held((k, len(t)) for k, t in shards).items()]
    before, checkpoint.read_hashed = checkpoint.read_hashed, read
    state, found = StateFiles(keep=1).load(place, wanted)
    checkpoint.read_hashed = before
    for key, tensor in shards:
        kind, name, start = key.split(":")
        assert found is not None and found.read(kind, name, int(start), len(tensor)).equal(tensor)
    return {"step": state["global_step"], "read": {k: sorted(v) for k, v in seen.items()}}


def main() -> None:
    """Every training that needs two ranks."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    init, told = folder / "init", {}
    told["whole"] = train(folder / "whole", init, "zero3", ranks=2)
    lora = folder / "lora_back"
    told["lora_back"] = train(lora, init, "zero3", ranks=2, cut=CUT, adapter=LORA)
    told["lora_on"] = train(folder / "lora_on", init, "zero3", ranks=2, adapter=LORA)
    told["whole_nodes"] = train(folder / "whole_nodes", init, "nodes", ranks=2)
    for name, first, then in (
        ("same", "zero3", "zero3"), ("other", "zero3", "zero1"), ("nodes", "nodes", "nodes"),
    ):  # fmt: skip
        run = folder / name
        before = train(run, init, first, ranks=2, cut=CUT)
        wait(run / "checkpoints")
        good = saved_states(run / "checkpoints")[0]
        if name == "same" and rank == 0:
            shutil.copytree(run / "checkpoints", folder / "back" / "checkpoints")
        good = folder / "back" / "checkpoints" / good.name
        listing = checkpoint.saved_states
        if rank == 1:  # another machine's list of a folder may be older
            checkpoint.saved_states = lambda path: []
        after = train(run, init, then, ranks=2)
        if name == "same":
            told["fallen_back"] = fall_back(folder, good)
        checkpoint.saved_states = listing
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
