"""What only a GPU can show: flex attention, a bf16 ZeRO-3 run, speed of the presets, LoRA.

    python tools/gpu_check.py                      every check, rows for tools/bench/RESULTS.md
    python tools/gpu_check.py flex speed           some of them

It has not run: no GPU was at hand where it was written. Without CUDA it says so and exits with 2.
"""

import datetime
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROW_TOKENS, STEPS, WARM = 4096, 12, 4
PRESETS = {"step1_200m": 4, "step1_3b": 1}  # rows of a batch
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bf16, dense, data sheets


def main() -> int:
    """Run the checks asked for; 0 if all hold, 1 if one does not, 2 without a GPU."""
    if not torch.cuda.is_available():
        print("gpu_check.py: there is no CUDA device here, so nothing was checked")
        return 2
    checks = {"flex": flex, "zero3": zero3, "speed": speed, "lora": lora}
    failed = False
    print("| date | device | check | result |\n|---|---|---|---|")
    for name in sys.argv[1:] or checks:
        for what, result, right in checks[name]():
            failed |= not right
            today = datetime.date.today().isoformat()
            mark = "" if right else " WRONG"
            print(f"| {today} | {torch.cuda.get_device_name()} | {what} | {result}{mark} |")
    return int(failed)


def flex() -> Iterator[tuple[str, str, bool]]:
    """flex_attention equals SDPA in value and gradient, with packed documents."""
    from aqaa.backbone.attention import Backend, attend
    from aqaa.backbone.reach import Reach

    torch.manual_seed(0)
    positions = torch.cat([torch.arange(700), torch.arange(324)])[None].cuda()
    made = [torch.randn(1, n, 1024, 64, device="cuda", requires_grad=True) for n in (8, 2, 2)]
    found: list[list[torch.Tensor]] = []
    reach = Reach.of(torch.zeros_like(positions), position_ids=positions)
    backends: tuple[Backend, Backend] = ("sdpa", "flex")
    for backend in backends:
        out = attend(*made, reach=reach, backend=backend)
        found.append([out, *torch.autograd.grad(out.square().sum(), made)])
    off = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True))
    yield "flex = SDPA, value and gradients, float32", f"{off:.1e} off", off < 1e-3


def zero3() -> Iterator[tuple[str, str, bool]]:
    """A short bf16 run through the sharded strategy learns a repeated batch."""
    losses, _, _ = train("step1_200m", ["trainer=zero3_nodes", "trainer.precision=bf16-mixed"])
    falls = losses[-1] < losses[0]
    yield "bf16 ZeRO-3, 200m", f"loss {losses[0]:.3f} to {losses[-1]:.3f}", falls


def speed() -> Iterator[tuple[str, str, bool]]:
    """Tokens a second and MFU of the size presets, rows of 4,096 ids."""
    for name in PRESETS:
        _, rate, flops = train(name, ["trainer=zero3_nodes"])
        peak = next((p for n, p in PEAK.items() if n in torch.cuda.get_device_name()), None)
        mfu = f", MFU {100 * rate * flops / peak:.1f} %" if peak else ""
        yield f"{name}, packed 4k, bf16", f"{rate:,.0f} ids/s{mfu}", True


def lora() -> Iterator[tuple[str, str, bool]]:
    """The same with an adapter, beside PEFT and TRL's trainer if trl is installed."""
    _, rate, _ = train("step1_3b", ["trainer=zero3_nodes", "adapter=lora"])
    yield "step1_3b LoRA, packed 4k, bf16", f"{rate:,.0f} ids/s", True
    try:
        peer = trl_rate()
    except ImportError:
        yield "PEFT + TRL beside it", "trl is not installed", True
        return
    yield "PEFT + TRL beside it", f"{peer:,.0f} ids/s, ratio {rate / peer:.2f}", True


def train(backbone: str, words: list[str]) -> tuple[list[float], float, float]:
    """Losses, ids a second after warming up, and FLOP an id, of a short run on one GPU."""
    import lightning.pytorch as pl
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from aqaa.data.module import DataModule
    from aqaa.runtime.catalogue import conf_dir
    from aqaa.runtime.compose import bind_targets, compose
    from aqaa.runtime.planner import placement
    from aqaa.runtime.planner_time import flops

    losses: list[float] = []
    ends: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]))  # waits for the device
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as temporary:
        sizes: Any = OmegaConf.to_container(
            OmegaConf.load(conf_dir() / "backbone" / f"{backbone}.yaml")
        )
        shape = write_model(Path(temporary) / "init", sizes, adapter="adapter=lora" in words)
        cfg = compose("sft", [f"run.root={temporary}", "run.name=run", f"run.steps={STEPS}",
                              f"parents.model={temporary}/init", *words, "trainer.devices=1",
                              "trainer.num_nodes=1"])  # fmt: skip
        bind_targets(cfg)
        rows = PRESETS[backbone]
        stage = instantiate(cfg.stage, _convert_="all")
        trainer = instantiate(cfg.trainer)(logger=False, callbacks=[Watch()])
        trainer.fit(stage, DataModule(one_batch(rows)))
        place = placement(cfg, rows=rows, row_tokens=ROW_TOKENS)
    rate = rows * ROW_TOKENS * (STEPS - WARM) / (ends[-1] - ends[WARM - 1])
    return losses, rate, flops(shape, place)[0]


def write_model(folder: Path, sizes: dict[str, Any], *, adapter: bool) -> Any:
    """A from-scratch backbone with Step-1's 74,752 rows; returns its shape."""
    from aqaa.backbone.initial import write_initial
    from aqaa.backbone.loading import Ids
    from aqaa.backbone.shape import shape_of, step1_config
    from aqaa.stream import StreamLayout
    from aqaa.text import TextTokenizer
    from aqaa.vocabulary import Vocabulary

    text = TextTokenizer.train_words([f"word{i}" for i in range(2000)])
    ids = Ids(text, Vocabulary(text.size, table_rows=74752), StreamLayout(), "")
    config = step1_config(sizes, table_rows=74752)
    write_initial(folder, config=config, ids=ids)
    return shape_of(config, adapter={"rank": 16, "targets": "all-linear"} if adapter else None)


def one_batch(rows: int) -> Any:
    """A source that gives the same random rows in every step, every position supervised."""
    from aqaa.data.collate import TokenBatch
    from aqaa.stream import Slot

    known: dict[str, Any] = {}

    def batch(step: int) -> Any:
        text = torch.tensor(known["ids"].layout.slot_ids(Slot.TEXT, known["ids"].vocabulary))
        generator = torch.Generator().manual_seed(0)
        drawn = text[torch.randint(0, len(text), (rows, ROW_TOKENS + 1), generator=generator)]
        fields = {"task": "toy", "input_ids": drawn[:, :-1], "targets": drawn[:, 1:],
                  "slots": torch.full((rows, ROW_TOKENS), int(Slot.TEXT)),
                  "sources": torch.zeros(rows, ROW_TOKENS, dtype=torch.long),
                  "position_ids": torch.arange(ROW_TOKENS).expand(rows, -1)}  # fmt: skip
        return TokenBatch(**fields)

    return SimpleNamespace(
        names=("toy",), bind=lambda ids: known.update(ids=ids), batch=batch, validation=lambda: []
    )


def trl_rate() -> float:
    """Ids a second of PEFT under TRL's SFTTrainer on a Llama of the 3B's shape, packed."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    sizes = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32}
    heads = {"num_attention_heads": 48, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=74752, **sizes, **heads)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    ids = torch.randint(5, 74752, (STEPS, ROW_TOKENS)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(output_dir=folder, max_steps=STEPS, per_device_train_batch_size=1,
                             bf16=True, report_to=[], max_length=ROW_TOKENS, packing=True,
                             dataset_kwargs={"skip_prepare_dataset": True})  # fmt: skip
        trainer = SFTTrainer(model, settings, train_dataset=Dataset.from_dict({"input_ids": ids}),
                             peft_config=LoraConfig(r=16, target_modules="all-linear"))  # fmt: skip
        begun = time.perf_counter()
        trainer.train()
        torch.cuda.synchronize()
    return STEPS * ROW_TOKENS / (time.perf_counter() - begun)


if __name__ == "__main__":
    sys.exit(main())
