"""Predicted against measured memory: real trainings of two gloo processes, ZeRO-0 to 3 and LoRA.

    python tools/bench/plan.py                          every model and case, long
    python tools/bench/plan.py zero3 lora               some cases of every model
    python tools/bench/plan.py model=step1_86m zero0    of one model

Each case trains a backbone in float32 through the real stage and the trainer that the configuration
names; what a rank's memory rises to (VmHWM) over what the bare process with everything imported
holds is measured, and compared with what `aqaa plan` says of the same configuration. The models
differ in width, depth, table, rows and family. The peer is DeepSpeed's own estimate of model
states, where it has one (stages 2 and 3); it leaves out activations and assumes 16-bit weights.
``ours`` and ``peer`` are the worst deviations in per cent; a ratio above 1 means ours is nearer.
"""

import contextlib
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Model:
    """A backbone to be measured: its sizes, its text ids, the batch it is trained on."""

    family: str
    width: int
    inner: int
    layers: int
    heads: int
    groups: int
    text_tokens: int
    rows: int
    row_tokens: int


MODELS = {
    "step1_43m": Model("step1", 512, 1408, 12, 8, 4, 2000, 2, 256),
    "step1_13m": Model("step1", 256, 704, 8, 4, 2, 8000, 4, 192),
    "step1_86m": Model("step1", 768, 2048, 12, 12, 4, 2000, 1, 512),
    "qwen3_45m": Model("qwen3", 512, 1536, 12, 8, 4, 12000, 2, 256),
}
RANKS, STEPS = 2, 3
GLOO = ["trainer=gloo", "trainer.strategy.reduce_bucket_elements=5000000"]
CASES = {
    "zero0": ["trainer=cpu", f"trainer.devices={RANKS}"],
    "zero1": [*GLOO, "trainer.strategy.stage=1"],
    "zero2": [*GLOO, "trainer.strategy.stage=2"],
    "zero3": [*GLOO, "trainer.strategy.stage=3"],
    "lora": [*GLOO, "trainer.strategy.stage=3", "adapter=lora"],
    "recomputed": [*GLOO, "trainer.strategy.stage=2", "stage.activation_checkpointing=true"],
    "accumulated": ["trainer=cpu", f"trainer.devices={RANKS}", "trainer.accumulate_grad_batches=2"],
}
WITHIN = 0.10


def main() -> None:
    """Run the cases and print what was predicted and what was measured."""
    chosen = [word.removeprefix("model=") for word in sys.argv[1:] if word.startswith("model=")]
    names = [word for word in sys.argv[1:] if not word.startswith("model=")] or list(CASES)
    found = []
    for kind in chosen or MODELS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_model(folder / "init", MODELS[kind])
            measured("lora", kind, folder)  # notes what a run imports: later ones begin with it
            found += [compared(name, kind, folder) for name in names]
    ours = 100 * max(abs(case["off"]) for case in found)
    theirs = [100 * abs(case["peer_off"]) for case in found if "peer_off" in case]
    peer = max(theirs, default=float("nan"))
    print(json.dumps({
        "bench": "plan", "ours": round(ours, 2), "peer": round(peer, 2),
        "unit": "% off the measured peak, at worst", "ratio": round(peer / ours, 2),
        "equal": ours <= 100 * WITHIN, "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {p: version(p) for p in ("torch", "deepspeed", "lightning")}, "cases": found,
    }))  # fmt: skip


def compared(name: str, kind: str, folder: Path) -> dict[str, Any]:
    """One case: what was predicted, what was measured."""
    case = {"model": kind, "case": name, **predicted(name, kind, folder),
            "measured_mb": measured(name, kind, folder)}  # fmt: skip
    case["off"] = case["predicted_mb"] / case["measured_mb"] - 1
    if case["peer_mb"] is not None:
        case["peer_off"] = case["peer_mb"] / case["measured_mb"] - 1
    pair = f"predicted {case['predicted_mb']:.1f} MB, measured {case['measured_mb']:.1f} MB"
    print(f"{kind} {name:12} {pair}: {100 * case['off']:+.1f} %", flush=True)
    return case


def write_model(folder: Path, model: Model) -> None:
    """A from-scratch backbone of the size to be measured."""
    from aqaa.backbone.initial import write_initial
    from aqaa.backbone.loading import Backbone, Ids
    from aqaa.backbone.step1 import Step1Config
    from aqaa.stream import StreamLayout
    from aqaa.text import TextTokenizer
    from aqaa.vocabulary import Vocabulary

    text = TextTokenizer.train_words([f"word{i}" for i in range(model.text_tokens)])
    ids = Ids(text, Vocabulary(text.size), StreamLayout(), "")
    sizes = {"vocab_size": ids.vocabulary.rows, "hidden_size": model.width,
             "intermediate_size": model.inner, "num_hidden_layers": model.layers,
             "num_attention_heads": model.heads}  # fmt: skip
    if model.family == "step1":
        config = Step1Config(num_attention_groups=model.groups, **sizes)
        write_initial(folder, config=config, ids=ids)
        return
    from transformers import Qwen3Config, Qwen3ForCausalLM

    head = {"num_key_value_heads": model.groups, "head_dim": model.width // model.heads}
    config = Qwen3Config(**sizes, **head, tie_word_embeddings=True)
    Backbone(Qwen3ForCausalLM(config), ids).save(folder)


def words(name: str, folder: Path) -> list[str]:
    """The overrides of a case."""
    return [f"run.root={folder}", f"run.name={name}", f"run.steps={STEPS}", "run.threads=1",
            f"parents.model={folder}/init", *CASES[name]]  # fmt: skip


def predicted(name: str, kind: str, folder: Path) -> dict[str, Any]:
    """The plan's peak, its parts, and DeepSpeed's estimate."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as third
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as second
    from omegaconf import OmegaConf

    from aqaa.runtime.catalogue import conf_dir
    from aqaa.runtime.planner import make_plan
    from aqaa.runtime.planner_time import Hardware

    gpu: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "gpu" / "cpu.yaml"))
    plan = make_plan("sft", words(name, folder), gpu=Hardware(**gpu), rows=MODELS[kind].rows,
                     row_tokens=MODELS[kind].row_tokens)  # fmt: skip
    trained, peer = plan.shape.whole.trainable, None
    if plan.place.stage == 2:
        peer = second(trained, num_gpus_per_node=RANKS, cpu_offload=False)[1]
    elif plan.place.stage == 3:
        peer = third(trained, plan.shape.whole.largest, num_gpus_per_node=RANKS,
                     cpu_offload=False, cpu_offload_params=False)[1]  # fmt: skip
    return {
        "predicted_mb": plan.memory.peak / 1e6,
        "at": plan.memory.moment,
        "kinds_mb": {k: round(v / 1e6, 1) for k, v in plan.memory.kinds().items()},
        "peer_mb": None if peer is None else peer / 1e6,
    }


def measured(name: str, kind: str, folder: Path) -> float:
    """Megabytes a rank rises over its bare process, the larger of the two."""
    env = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
        # Freed memory goes back at once, as a GPU's allocator would reuse it.
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
    }  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone",
              f"--nproc-per-node={RANKS}", __file__, "--rank", name, kind,
              str(folder)]  # fmt: skip
    done = subprocess.run(launch, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} did not run:\n{done.stderr[:4000]}")
    peaks = [float((folder / f"{name}.{rank}.txt").read_text()) for rank in range(RANKS)]
    return max(peaks)


def rank_of_a_case(name: str, kind: str, folder: Path) -> None:
    """One rank: train a few steps and note how far memory rose."""
    from aqaa.audio.torchaudio_shim import ensure

    ensure()
    import lightning.pytorch as pl
    from hydra.utils import instantiate

    from aqaa.data.module import DataModule
    from aqaa.runtime.compose import bind_targets, compose

    cfg = compose("sft", words(name, folder))
    bind_targets(cfg)

    class Watch(pl.Callback):
        """Forgets the peak of loading; what was read from the file is no longer there."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            Path("/proc/self/clear_refs").write_text("5")

        def on_train_batch_end(self, *args: Any) -> None:
            files_mb.append(status_mb("RssFile"))

    import_what_runs_import(folder)
    bare_mb, files_mb = status_mb("VmRSS"), [status_mb("RssFile")]
    stage = instantiate(cfg.stage, _convert_="all")
    trainer = instantiate(cfg.trainer)(logger=False, callbacks=[Watch()])
    data = DataModule(random_rows(MODELS[kind]), accumulate=cfg.trainer.accumulate_grad_batches)
    trainer.fit(stage, data)
    # Pages of files, the weights' and libraries', are the system's to drop: they do not count.
    rose = status_mb("VmHWM") - bare_mb - (max(files_mb) - files_mb[0])
    (folder / "modules.json").write_text(json.dumps(sorted(sys.modules)))
    (folder / f"{name}.{os.environ['RANK']}.txt").write_text(str(rose))


def import_what_runs_import(folder: Path) -> None:
    """Make this the bare process: libraries load parts of themselves late, 50 MB of them."""
    if (folder / "modules.json").is_file():
        for name in json.loads((folder / "modules.json").read_text()):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def random_rows(model: Model) -> Any:
    """A source of random ids, every position supervised."""
    import torch

    from aqaa.data.collate import TokenBatch
    from aqaa.stream import Slot

    known: dict[str, Any] = {}

    def batch(step: int) -> Any:
        rows = known["ids"].layout.slot_ids(Slot.TEXT, known["ids"].vocabulary)
        shape = (model.rows, model.row_tokens)
        drawn = torch.tensor(rows)[torch.randint(0, len(rows), shape)]
        fields = {"task": "toy", "input_ids": drawn, "targets": drawn,
                  "slots": torch.full(shape, int(Slot.TEXT)),
                  "sources": torch.zeros(shape, dtype=torch.long),
                  "position_ids": torch.arange(model.row_tokens).expand(shape)}  # fmt: skip
        return TokenBatch(**fields)

    return SimpleNamespace(
        names=("toy",), bind=lambda ids: known.update(ids=ids), batch=batch, validation=lambda: []
    )


def status_mb(key: str) -> float:
    """A line of this process's status, in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("this bench reads /proc, which this system lacks")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank_of_a_case(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main()
