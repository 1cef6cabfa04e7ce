"""Trainings of a tiny backbone, alone or as one of two gloo processes: what each rank saw, as JSON.

The tests call :func:`run` for one process, and start ``torchrun -m tests.runtime.two_ranks`` for
two; so many trainings share one launch.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from aqaa.backbone.initial import write_initial
from aqaa.backbone.lora import Lora
from aqaa.backbone.step1 import Step1Config
from aqaa.data.collate import TokenBatch
from aqaa.data.preferences import PreferenceBatch
from aqaa.stages.dpo import Dpo
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.stages.sft import Sft
from aqaa.storage import load_tensors
from aqaa.stream import Slot

STEPS = 4
LENGTH = 12
LORA = Lora(rank=2, alpha=4, dropout=0.0, targets="all-linear", seed=3)
# Names of trainings; "uncured" and "inside" undo a cure, and must be seen to fail.
ALL = (
    *("zero1", "zero2", "zero3", "uncured", "layers", "offload", "llama", "half"),
    *("lora", "inside", "start", "dpo", "dpo_lora"),
)


def write_models(folder: Path) -> None:
    """``init``, a Step-1, and ``llama_init``."""
    from tests.golden.make import ids
    from tests.llama import write_llama

    write_llama(folder / "llama_init", ids(), width=16)
    config = Step1Config(
        vocab_size=ids().vocabulary.rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_attention_groups=2,
    )
    write_initial(folder / "init", config=config, ids=ids(), row_std=0.5)


class Tokens:
    """Random ids; every batch supervises as many positions as any other."""

    def __init__(self, unequal: bool = False, rows: int = 0) -> None:
        self.unequal = unequal
        self.rows = rows

    def bind(self, ids: Any) -> None:
        self.ids = ids

    def batch(self, step: int) -> TokenBatch:
        if not self.rows:
            return self.drawn(step)
        rows = range(step * self.rows, (step + 1) * self.rows)
        pairs = [(self.drawn(row // 2), row % 2) for row in rows]
        ids, targets, slots, sources = (
            torch.cat([getattr(pair, name)[side, None] for pair, side in pairs])
            for name in ("input_ids", "targets", "slots", "sources")
        )
        return TokenBatch("asr", ids, targets, slots, sources)

    def drawn(self, step: int, rows: int = 2) -> TokenBatch:
        generator = torch.Generator().manual_seed(step)
        drawn = torch.randint(0, 40, (rows, LENGTH + 1), generator=generator)
        slots = torch.full((rows, LENGTH), int(Slot.TEXT))
        slots[:, ::3] = int(Slot.NONE)
        options = torch.tensor(self.ids.layout.slot_ids(Slot.TEXT, self.ids.vocabulary))
        targets = options[drawn[:, 1:] % len(options)]
        return TokenBatch("asr", drawn[:, :-1], targets, slots, torch.ones_like(slots))

    def validation(self) -> list[TokenBatch]:
        sizes = (3, 3, 1) if self.unequal else ()
        return [self.drawn(100 + i, rows) for i, rows in enumerate(sizes)]


class Pairs:
    """Five random pairs of answers."""

    rows = tuple(range(5))
    hash, mask = "toy", "none"

    def bind(self, ids: Any) -> None:
        self.tokens = Tokens()
        self.tokens.bind(ids)

    def collate(self, pairs: list[int]) -> PreferenceBatch:
        sides = [self.tokens.drawn(1000 * side + pair, 1) for side in (1, 2) for pair in pairs]
        ids, targets, slots = (
            torch.cat([getattr(side, name) for side in sides])
            for name in ("input_ids", "targets", "slots")
        )
        return PreferenceBatch(pairs, ids, targets, slots, torch.ones_like(ids))

    def batch(self, step: int) -> PreferenceBatch:
        return self.collate([step % 5, (step + 2) % 5])

    def validation(self) -> list[Any]:
        return []


def run(name: str, folder: Path, *, ranks: int, rows: int = 0) -> dict[str, Any]:
    """One training; ``folder`` holds ``init`` and gets ``name``, as a run folder has it.

    A step takes four batches of two rows, or eight rows by ``rows`` a batch.
    """
    import lightning.pytorch as pl

    from aqaa.data.module import DataModule
    from aqaa.runtime.strategy import gather_of

    pl.seed_everything(0, verbose=False)
    seen: dict[str, Any] = {"losses": []}
    start = name == "start"
    lr = 0.0 if start else 0.02 if name.startswith("dpo") else 0.5
    settings = OptimizerSettings(
        lr=lr, algorithm="sgd", warmup_steps=2, schedule="cosine", weight_decay=0.0
    )
    common: dict[str, Any] = {"model": str(folder / "init"), "optimizer": settings}
    if name in ("llama", "half"):
        common["model"] = str(folder / "llama_init")
    common["activation_checkpointing"] = name == "layers"
    if name in ("lora", "inside", "dpo_lora"):
        common["adapter"] = LORA
    out = folder / name
    out.mkdir(parents=True, exist_ok=True)
    kind = Dpo if name.startswith("dpo") else Sft
    if kind is Dpo:
        common |= {"scores": str(out / "scores.safetensors"), "beta": 0.5}
    stage = spied(kind, seen)(**common)
    source: Any = Pairs() if kind is Dpo else Tokens(start, rows)
    accumulate = 8 // rows if rows else 4 // ranks
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy(name) if ranks > 1 else "auto",
        precision="bf16-mixed" if name == "half" else "32-true",
        max_steps=STEPS,
        accumulate_grad_batches=accumulate,
        val_check_interval=2 * accumulate if start else None,
        check_val_every_n_epoch=None if start else 1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(stage, DataModule(source, accumulate=accumulate))
    metrics = trainer.callback_metrics.items()
    seen["validation"] = {k: float(v) for k, v in metrics if k.startswith("validation")}
    if kind is Dpo:
        seen["reference"] = stage._reference.tolist()
    if name in ("lora", "inside"):
        naive = stage.decoder.state_dict().items()
        seen["naive"] = sum(tensor.numel() for key, tensor in naive if "lora_" in key)
    stage.export(out / "model", gather_of(trainer.strategy))
    return seen


def spied(kind: type, seen: dict[str, Any]) -> type:
    """A stage that notes the loss of every batch, and how it lies in memory at the start."""

    class Spied(kind):
        def on_train_start(self) -> None:
            parameters = list(self.decoder.parameters())
            seen["whole"] = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
            seen["here"] = sum(p.numel() for p in parameters)
            tensors = [getattr(p, "ds_tensor", p) for p in parameters]
            seen["dtypes"] = sorted({str(tensor.dtype) for tensor in tensors})
            seen["buffers"] = sorted({str(buffer.dtype) for buffer in self.decoder.buffers()})
            optimizer = getattr(self.trainer.optimizers[0], "optimizer", None)
            zero = getattr(optimizer, "_optimizer", self.trainer.optimizers[0])
            masters = getattr(zero, "fp32_partitioned_groups_flat", [])
            seen["masters"] = sorted({str(master.dtype) for master in masters})
            seen["shards"] = sum(p.ds_tensor.numel() for p in parameters if hasattr(p, "ds_tensor"))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            seen["losses"].append(float(loss))
            return loss

    return Spied


def strategy(name: str) -> Any:
    """As conf/trainer/gloo, or, for ``nodes``, with what zero3_nodes sets otherwise."""
    from lightning.pytorch.strategies import DeepSpeedStrategy

    from aqaa.runtime.strategy import ShardedStrategy

    class Uncured(ShardedStrategy):
        backward = DeepSpeedStrategy.backward

    class Inside(ShardedStrategy):
        def model_sharded_context(self) -> Any:
            with super().model_sharded_context():
                return DeepSpeedStrategy.model_sharded_context(self)

    kinds = {"uncured": Uncured, "inside": Inside}
    number = {"zero1": 1, "zero2": 2}.get(name, 3)
    return kinds.get(name, ShardedStrategy)(
        device="cpu",
        stage=number,  # type: ignore[arg-type]
        offload="all" if name == "offload" else "none",
        overlap=name == "nodes",
        reduce_bucket_elements=1000,
        gather_bucket_elements=1000,
        live_elements=10**9,
        persist_below_elements=100 if name == "nodes" else 0,
    )


def changed(a: Path, b: Path) -> float:
    """The largest difference between two model files with the same tensors."""
    one, two = load_tensors(a / "model.safetensors"), load_tensors(b / "model.safetensors")
    assert one.keys() == two.keys()
    return max(float((one[k] - two[k]).abs().max()) for k in one)


def main() -> None:
    """Every training named, one after the other, as this rank of a torchrun."""
    import os

    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names:
        try:
            seen = run(name, folder, ranks=2)
        except ValueError as error:
            seen = {"error": str(error)}
        (folder / f"{name}.{os.environ['RANK']}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
