"""Trainings of a tiny backbone, alone or as one of two gloo processes: what each rank saw, as JSON.

The tests call :func:`run` for one process, and start ``torchrun -m tests.runtime.two_ranks`` for
two; so many trainings share one launch.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aqaa.backbone.initial import write_initial
from aqaa.backbone.lora import Lora
from aqaa.backbone.step1 import Step1Config
from aqaa.data.collate import Document, TokenBatch, packed, padded
from aqaa.data.preferences import PreferenceBatch, collated
from aqaa.losses.masked_dpo import kept_kinds
from aqaa.stages.dpo import Dpo
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.stages.sft import Sft
from aqaa.storage import load_tensors
from aqaa.stream import Slot, Stream
from aqaa.vocabulary import TOKEN_TYPES

STEPS = 4
LENGTH = 12
LORA = Lora(rank=2, alpha=4, dropout=0.0, targets="all-linear", seed=3)
# Names of trainings; "uncured", "inside" and "alike" undo a cure, and must be seen to fail.
ALL = (
    *("zero1", "zero2", "zero3", "uncured", "layers", "offload", "llama", "half"),
    *("lora", "inside", "start", "dpo", "dpo_lora", "alike", "slower", "faster"),
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
    """Random documents, ``rows`` a batch, padded or a pair of them packed to a row.

    They are of any length, and supervise one id or all, of any kind: batches weigh very unequally.
    """

    names = ("tts", "asr")

    def __init__(self, rows: int = 2, *, packs: bool = False, checks: tuple[int, ...] = ()) -> None:
        self.rows = rows
        self.packs = packs
        self.checks = checks

    def bind(self, ids: Any) -> None:
        self.ids = ids

    def batch(self, step: int) -> TokenBatch:
        return self.of(range(step * self.rows, (step + 1) * self.rows))

    def validation(self) -> list[TokenBatch]:
        return [self.of(range(100 * i, 100 * i + rows)) for i, rows in enumerate(self.checks)]

    def of(self, numbers: Iterable[int]) -> TokenBatch:
        pad = self.ids.vocabulary.pad
        if self.packs:
            rows = [[self.document(2 * n), self.document(2 * n + 1)] for n in numbers]
            return packed(rows, 2 * LENGTH, pad=pad)
        return padded("asr", [self.document(n) for n in numbers], pad=pad)

    def document(self, number: int) -> Document:
        random = np.random.default_rng(number)
        length = int(random.integers(3, LENGTH + 1))
        slot = (Slot.TEXT, Slot.LINGUISTIC, Slot.SEMANTIC)[number % 3]
        learnt = length if number % 2 else 1
        slots = np.full(length + 1, int(Slot.NONE), np.int8)
        slots[-learnt:] = int(slot)
        ids = random.integers(0, 40, length + 1).astype(np.int32)
        options = self.ids.layout.slot_ids(slot, self.ids.vocabulary)[:3]
        ids[-learnt:] = random.choice(options, learnt)
        return Document(1, ids, slots)


class Pairs:
    """Five random pairs of answers, ``pairs`` a batch, in one row each or in two; one kind of id
    is masked out."""

    rows = tuple(range(5))
    folder, hash = Path("toy"), "toy"
    keep = kept_kinds("semantic", TOKEN_TYPES)

    def __init__(self, pairs: int = 2, *, shared_prompt: bool = True) -> None:
        self.pairs = pairs
        self.shared_prompt = shared_prompt

    def bind(self, ids: Any) -> None:
        self.tokens = Tokens()
        self.tokens.bind(ids)

    def stream(self, side: int, pair: int) -> Stream:
        prompt, answer = (self.tokens.document(1000 * n + pair) for n in (3, side))
        slots = np.concatenate([np.zeros_like(prompt.slots), answer.slots])
        return Stream(np.concatenate([prompt.ids, answer.ids]).tolist(), slots.tolist())

    def collate(self, pairs: list[int]) -> PreferenceBatch:
        streams = [self.stream(side, pair) for side in (1, 2) for pair in pairs]
        ids, shared = self.tokens.ids, self.shared_prompt
        return collated(pairs, streams, ids, self.keep, shared_prompt=shared)

    def batch(self, step: int) -> PreferenceBatch:
        return self.collate([i % 5 for i in range(step * self.pairs, (step + 1) * self.pairs)])

    def validation(self) -> list[Any]:
        return []


def run(
    name: str, folder: Path, *, ranks: int, rows: int = 2, packs: bool = False
) -> dict[str, Any]:
    """One training; ``folder`` holds ``init`` and gets ``name``, as a run folder has it.

    A step takes eight rows, or pairs, ``rows`` a batch.
    """
    import lightning.pytorch as pl

    from aqaa.data.module import DataModule
    from aqaa.runtime.strategy import gather_of

    pl.seed_everything(0, verbose=False)
    seen: dict[str, Any] = {"losses": []}
    start = name == "start"
    lr = {"start": 0.0, "dpo": 0.02, "dpo_lora": 0.2}.get(name, 0.02 if "dpo" in name else 0.5)
    settings = OptimizerSettings(
        lr=lr,
        algorithm="sgd",
        warmup_steps=2,
        schedule="cosine",
        weight_decay=0.0,
        new_rows_lr_ratio={"slower": 0.25, "faster": 2.0}.get(name),
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
    if name.startswith("alike"):
        stage.weight_of = None
    checks = (3, 3, 1) if start else ()
    source: Any = Tokens(rows, packs=packs, checks=checks)
    if kind is Dpo:
        source = Pairs(rows, shared_prompt=name != "dpo_lora")
    accumulate = 8 // (rows * ranks)
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
        log_every_n_steps=2 if kind is Dpo else 50,
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
        seen["reference"] = stage._reference.flatten(1).tolist()
        seen["figures"] = {k: float(v) for k, v in metrics if k.startswith("train")}
    if name in ("lora", "inside"):
        naive = stage.decoder.state_dict().items()
        seen["naive"] = sum(tensor.numel() for key, tensor in naive if "lora_" in key)
    stage.export(out / "model", gather_of(trainer.strategy))
    return seen


def spied(kind: type, seen: dict[str, Any]) -> type:
    """A stage that notes the mean loss and the share of every batch, and how it lies in memory."""

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
            sums = getattr(zero, "grad_partitions_flat_buffer", torch.empty(0))
            seen["sums"] = str(sums.dtype)
            seen["shards"] = sum(p.ds_tensor.numel() for p in parameters if hasattr(p, "ds_tensor"))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            share = getattr(batch, "share", 1.0)
            seen["losses"].append(float(loss) / share)
            seen.setdefault("shares", []).append(share)
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
    number = {"zero1": 1, "slower": 1, "zero2": 2}.get(name, 3)
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
