"""Preference optimisation: our trainer beside TRL's DPOTrainer, on the same pairs and weights.

    python tools/bench/dpo.py steps=4 warm=1 rounds=1

The Llama of the sft bench (8 layers, 256 wide, 74,752 rows); prompts and answers of about 100 ids
each, every id of the answers in the term; two pairs a step; fp32, one thread, CPU time. Ours is
`aqaa dpo` as a user runs it, with data loading, logging and the periodic save on; every mode is a
process of its own, in turns. Reference scores are made before the first step, which is not timed,
except by TRL with a live reference. ``equal``: the loss of the first pairs under a policy that is
not the reference is TRL's to 1e-6, both of models in double and with log-probabilities in double;
those of TRL's fused head are floats, and their sums are off by as much. The last line is JSON.
"""

import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import dpo_peer  # noqa: E402
import peers  # noqa: E402
import sft  # noqa: E402
from sft_peer import status_kib  # noqa: E402

PAIRS = 24
MODES = ("ours", "stored", "live")
# What the frame of a turn takes: <s>, the question's frame and the answer's header; <|EOT|>.
_PROMPT_FRAME, _ANSWER_FRAME = 6, 1


def make(folder: Path) -> None:
    """Write pairs, reference, a policy that has moved, and the pairs as TRL reads them."""
    import numpy as np
    import torch

    from aqaa.audio.torchaudio_shim import ensure
    from aqaa.backbone.loading import Backbone, Ids
    from aqaa.data.manifest import write_manifest
    from aqaa.data.preferences import message
    from aqaa.stream import StreamLayout
    from aqaa.text import HEADERS, SPECIALS, TASK_WORDS, TextTokenizer
    from aqaa.vocabulary import Vocabulary

    ensure()  # before transformers looks for torchaudio
    words = [f"w{i}" for i in range(sft.TEXT_IDS - len(SPECIALS) - len(HEADERS) - len(TASK_WORDS))]
    ids = Ids(
        TextTokenizer.train_words(words),
        Vocabulary(sft.TEXT_IDS, table_rows=sft.TABLE_ROWS),
        StreamLayout(),
        "bench",
    )
    model = sft.llama()
    Backbone(model, ids).save(folder / "model")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    Backbone(model, ids).save(folder / "policy")

    draw = np.random.default_rng(2)
    sizes = np.clip(np.exp(draw.normal(4.6, 0.6, (PAIRS, 3))), 32, [400, 300, 300]).astype(int)
    said = [
        [" ".join(draw.choice(words, int(n))) for n in row - [_PROMPT_FRAME, *2 * [_ANSWER_FRAME]]]
        for row in sizes
    ]
    rows = [
        {
            "id": f"{i}",
            "kind": "preference",
            "meta": {"tokenizer_hash": "bench"},
            "prompt": [message("user", prompt, [])],
            "chosen": [message("assistant", chosen, [])],
            "rejected": [message("assistant", rejected, [])],
        }
        for i, (prompt, chosen, rejected) in enumerate(said)
    ]
    write_manifest(folder / "pairs" / "pairs.jsonl", rows)
    (folder / "pairs.json").write_text(json.dumps(columns(folder, sizes.tolist())))


def source(folder: Path) -> Any:
    """Our data source over those pairs."""
    from aqaa.backbone.loading import Ids
    from aqaa.data.preferences import PreferenceBatches

    made = PreferenceBatches(
        pairs=str(folder / "pairs"), batch=dpo_peer.BATCH_PAIRS, mask="none", seed=0
    )
    made.bind(Ids.load(folder / "model"))
    return made


def columns(folder: Path, sizes: list[list[int]]) -> list[dict[str, list[int]]]:
    """The pairs in the order our source takes them, in the columns TRL reads."""
    made, found = source(folder), []
    for step in range(PAIRS // dpo_peer.BATCH_PAIRS):
        for pair in made.batch(step).pairs:
            chosen, rejected = (
                made._stream(made.rows[pair], side).ids for side in ("chosen", "rejected")
            )
            prompt, *answers = sizes[pair]
            assert [len(chosen) - prompt, len(rejected) - prompt] == answers
            assert chosen[:prompt] == rejected[:prompt]
            found.append(
                {
                    "prompt_ids": chosen[:prompt],
                    "chosen_ids": chosen[prompt:],
                    "rejected_ids": rejected[prompt:],
                }
            )
    return found


def ours(folder: Path, steps: int, warm: int) -> dict[str, Any]:
    """Run `aqaa dpo` here, watched from outside: when each step began, what it lost."""
    import torch

    from aqaa.runtime.compose import compose
    from aqaa.runtime.run import train
    from aqaa.stages.dpo import Dpo

    torch.set_num_threads(1)
    import deepspeed  # noqa: F401  what a run imports belongs to the bare process
    import lightning.pytorch  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    bare = status_kib("VmRSS")
    stamps: list[float] = []
    losses: list[float] = []
    peak = [0]
    step = Dpo.training_step

    def watched(self: Any, batch: Any, batch_idx: int) -> Any:
        stamps.append(time.process_time())
        peak[0] = status_kib("VmHWM")
        loss = step(self, batch, batch_idx)
        losses.append(float(loss))
        return loss

    Dpo.training_step = watched  # type: ignore[method-assign]
    place = tempfile.mkdtemp(dir=folder)  # a finished run in it would be kept as it is
    words = [f"run.root={place}", "run.name=dpo", f"run.steps={steps + warm + 1}"]
    words += [f"parents.{name}={folder / name}" for name in ("pairs", "model")]
    words += ["data.mask=none", f"data.batch={dpo_peer.BATCH_PAIRS}", "run.seed=0"]
    words += ["stage.normalise=table", "run.threads=1", "trainer.limit_val_batches=0"]
    words += [f"stage.scores={place}/scores.safetensors", "trainer.gradient_clip_val=1.0"]
    words += ["optim.lr=1e-5", "optim.warmup_steps=1", "optim.schedule=constant"]
    words += ["optim.weight_decay=0", "optim.betas=[0.9,0.999]", "trainer.log_every_n_steps=1"]
    train("dpo", compose("dpo", words))
    seconds = stamps[warm + steps] - stamps[warm]
    return {
        "pairs_per_s": dpo_peer.BATCH_PAIRS * steps / seconds,
        "s_per_step": seconds / steps,
        "memory_mib": (peak[0] - bare) / 1024,
        "losses": losses,
    }


def check(folder: Path) -> float:
    """The loss of the first pairs under the policy, by the stage itself, in double."""
    import torch

    from aqaa.backbone.loading import load_backbone
    from aqaa.stages.dpo import Dpo
    from aqaa.stages.optimizer import OptimizerSettings

    stage = Dpo(
        model=str(folder / "model"),
        optimizer=OptimizerSettings(lr=0.0),
        beta=0.1,
        scores=str(folder / "check.safetensors"),
        normalise="table",
    )
    pairs = source(folder)
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(source=pairs))
    stage.trainer = trainer
    stage.configure_model()
    stage.decoder.double()
    batch = pairs.batch(0)
    with torch.no_grad():
        scores = torch.stack(stage._scores(batch, whole=True).chunk(2), 1)
        assert stage._reference is not None
        kept = stage._reference.double()
        assert torch.allclose(scores, kept[batch.pairs], atol=1e-2)
        stage._reference = kept.index_copy(0, torch.tensor(batch.pairs), scores)
        stage.decoder.load_state_dict(load_backbone(folder / "policy").model.state_dict())
        return float(stage._loss(batch).loss)


def bench(steps: int, warm: int, rounds: int) -> dict[str, Any]:
    """All modes in turns; returns the record."""
    peer = peers.python_of("sft", sft.PEERS)  # trl and what it needs, in one place for both
    found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sft.call(sys.executable, __file__, "make", folder)
        script = Path(__file__).with_name("dpo_peer.py")
        files = (script, folder / "pairs.json", folder / "model")
        loss = sft.call(sys.executable, __file__, "check", folder)["loss"]
        theirs = sft.call(peer, *files, "check", folder / "policy", folder / "trl")
        print(f"loss in double: {loss!r}, TRL's {theirs}", file=sys.stderr, flush=True)
        for _ in range(rounds):
            for mode in MODES:
                if mode == "ours":
                    got = sft.call(sys.executable, __file__, "ours", folder, steps, warm)
                else:
                    got = sft.call(peer, *files, mode, steps, warm, folder / "trl")
                found[mode].append(got)
                shown = {k: round(got[k], 3) for k in ("pairs_per_s", "s_per_step", "memory_mib")}
                print(f"{mode}: {shown}", file=sys.stderr, flush=True)
    rate = {mode: median(g["pairs_per_s"] for g in got) for mode, got in found.items()}
    memory = {mode: median(g["memory_mib"] for g in got) for mode, got in found.items()}
    ratios = {mode: round(rate["ours"] / rate[mode], 2) for mode in MODES[1:]}
    versions = {f"peer_{name}": v for name, v in found["live"][0]["versions"].items()}
    runs = zip(found["ours"][0]["losses"], found["live"][0]["losses"], strict=True)
    return {
        "bench": "dpo",
        "ours": round(rate["ours"], 3),
        "peer": round(rate["stored"], 3),
        "unit": "pairs per CPU second",
        "ratio": ratios["stored"],
        "ratios": ratios,
        "memory_mib": {mode: round(value) for mode, value in memory.items()},
        "memory_ratio": round(memory["ours"] / memory["live"], 2),
        "loss": loss,
        "loss_of_peer": theirs["loss"],
        "loss_of_peer_s_head": theirs["loss_of_its_head"],
        "losses_of_steps_apart": max(abs(mine - other) for mine, other in runs),
        "equal": abs(loss - theirs["loss"]) <= 1e-6,
        "machine": f"{os.cpu_count()}-core {platform.machine()} CPU",
        "versions": {"torch": version("torch"), **versions},
    }


def main(words: list[str]) -> None:
    """One of the processes, or all of them."""
    if words[:1] == ["make"]:
        make(Path(words[1]))
        print("{}")
    elif words[:1] == ["check"]:
        print(json.dumps({"loss": check(Path(words[1]))}))
    elif words[:1] == ["ours"]:
        print(json.dumps(ours(Path(words[1]), int(words[2]), int(words[3]))))
    else:
        told = dict(word.split("=", 1) for word in words)
        numbers = {"steps": 4, "warm": 1, "rounds": 1} | {k: int(v) for k, v in told.items()}
        print(json.dumps(bench(**numbers)))


if __name__ == "__main__":
    main(sys.argv[1:])
