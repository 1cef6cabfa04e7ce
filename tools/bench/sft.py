"""Supervised fine-tuning: our trainer beside TRL's SFTTrainer, on the same documents and weights.

    python tools/bench/sft.py steps=4 warm=1 rounds=1

A Llama of 8 layers, 256 wide, with 74,752 rows; documents of 32 to 512 ids, half of each learnt;
about 1,000 ids a step; fp32, one thread, CPU time. Ours is `aqaa sft` as a user runs it, with
data loading, logging and the periodic save on; every mode is a process of its own, in turns.
``equal``: the loss of our first step is that of each document alone, without padding, to 1e-6.
The last line is JSON.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import peers  # noqa: E402
import sft_peer  # noqa: E402

TEXT_IDS, TABLE_ROWS = 65_536, 74_752
DOCUMENTS = 320
PEERS = ("trl>=1.16", "transformers", "peft", "datasets")
# What the frame of the task takes of a document: <s>, the system turn and the question's frame,
# the answer's header; and <|EOT|> of the answer, which is learnt.
_PROMPT_FRAME, _ANSWER_FRAME = 10, 1


def make(folder: Path) -> None:
    """Write corpus, token store, backbone, and the same documents as TRL reads them."""
    import numpy as np

    from aqaa.backbone.loading import Backbone, Ids
    from aqaa.data.token_store import write_store
    from aqaa.signals import CodePair
    from aqaa.storage import atomic_folder, tree_hash, write_json
    from aqaa.stream import StreamLayout
    from aqaa.text import HEADERS, SPECIALS, TASK_WORDS, TextTokenizer
    from aqaa.vocabulary import Vocabulary

    words = [f"w{i}" for i in range(TEXT_IDS - len(SPECIALS) - len(HEADERS) - len(TASK_WORDS))]
    ids = Ids(
        TextTokenizer.train_words(words),
        Vocabulary(TEXT_IDS, table_rows=TABLE_ROWS),
        StreamLayout(),
        "bench",
    )
    draw = np.random.default_rng(1)
    sizes = np.clip(np.exp(draw.normal(5.3, 0.6, DOCUMENTS)), 32, 512).astype(int)
    rows = [row(i, int(n), lambda k: " ".join(draw.choice(words, k))) for i, n in enumerate(sizes)]
    with atomic_folder(folder / "corpus") as corpus:
        write_json(corpus / "domain.json", {})
        for name, some in (("train", rows), ("validation", rows[:1]), ("test", [])):
            (corpus / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some))
        (corpus / "answers.jsonl").write_text("")
    codes = {f"train/{r['id']}": CodePair([0, 0], [0, 0, 0]) for r in rows}
    codes |= {f"validation/{rows[0]['id']}": CodePair([], []), "answers/any": CodePair([], [])}
    with atomic_folder(folder / "tokens") as tokens:
        meta = {"tokenizer_hash": "bench", "corpus_hash": tree_hash(folder / "corpus")}
        write_store(tokens, codes, {**meta, "question_books": "both"})
    Backbone(llama(), ids).save(folder / "model")
    write_json(folder / "documents.json", documents(folder))


def row(number: int, size: int, text: Any) -> dict[str, Any]:
    """A chat row whose document has ``size`` ids, the second half of them learnt."""
    asked = text(size // 2 - _PROMPT_FRAME)
    answer = text(size - size // 2 - _ANSWER_FRAME)
    return {
        "id": f"{number}",
        "messages": [
            {"role": "user", "content": [{"type": "audio", "path": "none.wav", "text": asked}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
        "meta": {"style": "plain", "answer_id": "any"},
    }


def llama() -> Any:
    """The model both sides train, with seeded weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TABLE_ROWS,
        hidden_size=256,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=704,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def source(folder: Path) -> Any:
    """Our data source over those documents."""
    from aqaa.backbone.loading import Ids
    from aqaa.data.dialogues import DialogueBatches

    made = DialogueBatches(
        corpus=str(folder / "corpus"),
        tokens=str(folder / "tokens"),
        tasks={"tqta": {"share": 1.0}},
        steps=1,
        code_noise=0.0,
        row_tokens=sft_peer.ROW_TOKENS,
        rows=sft_peer.BATCH["packed"],
    )
    made.bind(Ids.load(folder / "model"))
    return made


def documents(folder: Path) -> list[dict[str, list[int]]]:
    """The documents as our data source makes them, in the columns TRL reads."""
    made = source(folder)
    found = []
    for place in range(DOCUMENTS):
        document = made._document("tqta", place)
        learnt = [int(slot > 0) for slot in document.slots]
        assert sum(learnt) == len(learnt) - len(learnt) // 2
        found.append({"input_ids": document.ids.tolist(), "completion_mask": learnt})
    return found


def ours(folder: Path, steps: int, warm: int) -> dict[str, Any]:
    """Run `aqaa sft` here, watched from outside: when each step began, what it read."""
    import torch

    from aqaa.runtime.compose import compose
    from aqaa.runtime.run import train
    from aqaa.stages.language import LanguageModel

    torch.set_num_threads(1)
    import deepspeed  # noqa: F401  what a run imports belongs to the bare process
    import lightning.pytorch  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    bare = sft_peer.status_kib("VmRSS")
    stamps: list[float] = []
    real: list[int] = []
    losses: list[float] = []
    peak = [0]
    step = LanguageModel.training_step

    def watched(self: Any, batch: Any, batch_idx: int) -> Any:
        stamps.append(time.process_time())
        real.append(int((batch.input_ids != 0).sum()))
        peak[0] = sft_peer.status_kib("VmHWM")
        loss = step(self, batch, batch_idx)
        losses.append(float(loss))
        return loss

    LanguageModel.training_step = watched  # type: ignore[method-assign]
    place = tempfile.mkdtemp(dir=folder)  # a finished run in it would be kept as it is
    words = [f"run.root={place}", "run.name=sft", f"run.steps={steps + warm + 1}"]
    words += [f"parents.{name}={folder / name}" for name in ("corpus", "tokens", "model")]
    words += ["+data.tasks.tqta={share:1}", "data.code_noise=0"]
    words += [f"data.row_tokens={sft_peer.ROW_TOKENS}", f"data.rows={sft_peer.BATCH['packed']}"]
    words += ["stage.normalise=table", "run.threads=1", "trainer.limit_val_batches=0"]
    words += ["stage.slot_weights={text:1,linguistic:1,semantic:1,after:1}"]
    words += ["optim.lr=1e-4", "optim.warmup_steps=1", "trainer.log_every_n_steps=1"]
    train("sft", compose("sft", words))
    seconds = stamps[warm + steps] - stamps[warm]
    return {
        "tokens_per_s": sum(real[warm : warm + steps]) / seconds,
        "s_per_step": seconds / steps,
        "memory_mib": (peak[0] - bare) / 1024,
        "real": real,
        "losses": losses,
    }


def alone(folder: Path) -> float:
    """The loss of our first step from separate, unpadded passes with whole logits."""
    import torch

    from aqaa.backbone.loading import load_backbone

    model, made = load_backbone(folder / "model").model, source(folder)
    total, count = 0.0, 0
    with torch.no_grad():
        for packed_row in made.drawn(0):
            for task, place in packed_row:
                _, ids, slots = made._document(task, place)
                logits = model(torch.tensor(ids[None, :-1].tolist())).logits[0]
                targets = torch.tensor(ids[1:].tolist())
                nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
                learnt = torch.tensor((slots[1:] > 0).tolist())
                total += float(nats[learnt].double().sum())
                count += int(learnt.sum())
    return total / count


def call(python: str | Path, *words: object) -> dict[str, Any]:
    """Run a process and read the JSON of its last line."""
    root = Path(__file__).resolve().parent.parent.parent
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [str(python), *map(str, words)], stdout=subprocess.PIPE, text=True, env=env
    )
    if done.returncode:
        raise SystemExit(f"{words} ended with {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def bench(steps: int, warm: int, rounds: int) -> dict[str, Any]:
    """All modes in turns; returns the record."""
    peer = peers.python_of("sft", PEERS)
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "padded": [], "packed": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call(sys.executable, __file__, "make", folder)
        first = call(sys.executable, __file__, "alone", folder)["loss"]
        script = Path(__file__).with_name("sft_peer.py")
        files = (folder / "documents.json", folder / "model")
        for _ in range(rounds):
            for mode in ("ours", "packed", "padded"):
                words = (script, *files, mode, steps, warm, folder / "trl")
                if mode == "ours":
                    got = call(sys.executable, __file__, "ours", folder, steps, warm)
                else:
                    got = call(peer, *words)
                found[mode].append(got)
                shown = {k: round(got[k], 2) for k in ("tokens_per_s", "s_per_step", "memory_mib")}
                print(f"{mode}: {shown}", file=sys.stderr, flush=True)
    rate = {mode: median(g["tokens_per_s"] for g in got) for mode, got in found.items()}
    memory = {mode: median(g["memory_mib"] for g in got) for mode, got in found.items()}
    ratios = {mode: round(rate["ours"] / rate[mode], 2) for mode in ("padded", "packed")}
    loss = found["ours"][0]["losses"][0]
    versions = {f"peer_{name}": v for name, v in found["packed"][0]["versions"].items()}
    return {
        "bench": "sft",
        "ours": round(rate["ours"], 1),
        "peer": round(rate["packed"], 1),
        "unit": "real tokens per CPU second",
        "ratio": ratios["packed"],
        "ratios": ratios,
        "memory_mib": {mode: round(value) for mode, value in memory.items()},
        "memory_ratio": round(memory["ours"] / memory["padded"], 2),
        "loss": loss,
        "loss_of_separate_passes": first,
        "equal": abs(loss - first) <= 1e-6 * first,
        "machine": f"{os.cpu_count()}-core {platform.machine()} CPU",
        "versions": {"torch": version("torch"), **versions},
    }


def main(words: list[str]) -> None:
    """One of the processes, or all of them."""
    if words[:1] == ["make"]:
        make(Path(words[1]))
        print("{}")
    elif words[:1] == ["alone"]:
        print(json.dumps({"loss": alone(Path(words[1]))}))
    elif words[:1] == ["ours"]:
        print(json.dumps(ours(Path(words[1]), int(words[2]), int(words[3]))))
    else:
        told = dict(word.split("=", 1) for word in words)
        numbers = {"steps": 4, "warm": 1, "rounds": 1} | {k: int(v) for k, v in told.items()}
        print(json.dumps(bench(**numbers)))


if __name__ == "__main__":
    main(sys.argv[1:])
