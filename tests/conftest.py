"""A tiny chain, built once a session through the command line: from the corpus to the voice.

Every stage runs a few steps only; nothing understands anything, everything is there.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has its background work ignore Ctrl-C, which all that is started here would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
STEPS = 6
COMMON = (
    f"run.steps={STEPS}",
    "run.threads=1",
    "run.save_every_s=1000",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=2",
)
LANGUAGE = ("data.validation_rows=4", "data.code_noise=0.2", "optim.warmup_steps=2")
BOOK = ("data.batch=6", "tokenizer.width=32", "tokenizer.blocks=1", "stage.codebook_rounds=1")
# Stage by name: its verb and what makes its walkthrough preset tiny.
STAGES: dict[str, tuple[str, ...]] = {
    "tokenizer_linguistic": ("tokenizer", *BOOK, "stage.codebook_batches=2"),
    "tokenizer_semantic": ("tokenizer", *BOOK, "stage.codebook_batches=2"),
    "pretrain": (
        "pretrain",
        *LANGUAGE,
        *(f"data.tasks.{t}.batch=4" for t in ("asr", "aqta", "tqta", "tts", "interleaved")),
    ),
    "sft_1": ("sft", *LANGUAGE, *(f"data.tasks.{t}.batch=3" for t in ("aqtaa", "aqta"))),
    "sft_2": ("sft", *LANGUAGE, "data.tasks.aqtaa.batch=3"),
    "dpo": ("dpo", "data.batch=2"),
    "vocoder_flow": (
        "vocoder",
        "data.batch=3",
        "vocoder.width=32",
        "vocoder.code_width=16",
        "vocoder.time_width=16",
    ),
    "vocoder_waveform": (
        "vocoder",
        "data.batch=3",
        "vocoder.channels=16",
        "vocoder.inner=32",
        "vocoder.blocks=1",
    ),
}
# What a stage is made from, below the chain's folder.
PARENTS: dict[str, dict[str, str]] = {
    "tokenizer_linguistic": {"corpus": "corpus"},
    "tokenizer_semantic": {"corpus": "corpus"},
    "pretrain": {"corpus": "corpus", "tokens": "tokens", "model": "init"},
    "sft_1": {"corpus": "corpus", "tokens": "tokens", "model": "pretrain/model"},
    "sft_2": {"corpus": "corpus", "tokens": "tokens", "model": "sft_1/model"},
    "dpo": {"pairs": "pairs", "model": "sft_1/model"},
    "vocoder_flow": {"corpus": "corpus", "tokens": "tokens"},
    "vocoder_waveform": {"corpus": "corpus", "tokens": "null"},
}


@dataclass(frozen=True)
class Chain:
    """Folders of the tiny chain, and the command lines that make its stages."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def words(self, stage: str, root: Path, *more: str, **parents: str | Path) -> list[str]:
        """The command line of a stage with its run folder below ``root``."""
        verb, *tiny = STAGES[stage]
        sources = {
            key: "null" if path == "null" else f"{self.folder / path}"
            for key, path in PARENTS[stage].items()
        } | {key: str(path) for key, path in parents.items()}
        return [
            *(verb, f"preset=walkthrough/{stage}", f"run.root={root}", f"run.name={stage}"),
            *(f"parents.{key}={path}" for key, path in sources.items()),
            *COMMON,
            *tiny,
            *more,
        ]


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """Everything up to the waveform head, each stage a few steps."""
    pytest.importorskip("espeakng_loader")
    from aqaa.cli import main

    chain = Chain(tmp_path_factory.mktemp("chain"))

    def run(*words: object) -> None:
        assert main([str(word) for word in words]) == 0, words

    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"):
            patch.setenv(name, "")  # the command line sets these for its process
        run(
            *("data", "synthesize", chain / "corpus", "questions=60", "validation=8", "test=8"),
            *("workers=1", "families=[col1,long]"),
        )
        for book in ("linguistic", "semantic"):
            run(*chain.words(f"tokenizer_{book}", chain.folder))
        run(
            *("data", "tokenize", chain / "corpus", f"out={chain / 'tokens'}"),
            *(f"{b}={chain.folder}/tokenizer_{b}/model" for b in ("linguistic", "semantic")),
        )
        run(
            *("init", chain / "init", f"codes={chain / 'tokens'}/tokenizer"),
            *(f"texts={chain / 'corpus'}/domain.json", "backbone.hidden_size=32"),
            *("backbone.intermediate_size=64", "backbone.num_hidden_layers=2"),
        )
        run(*chain.words("pretrain", chain.folder))
        run(*chain.words("sft_1", chain.folder))
        run(*chain.words("sft_2", chain.folder))
        run(
            *("data", "pairs", f"model={chain / 'sft_1'}/model", f"corpus={chain / 'corpus'}"),
            *(f"tokens={chain / 'tokens'}", f"out={chain / 'pairs'}", "prompts=5", "samples=1"),
        )
        run(*chain.words("dpo", chain.folder))
        models = ",".join(f"{chain / part}/model" for part in ("sft_1", "sft_2", "dpo"))
        run("merge", f"models=[{models}]", "weights=[5,5,1]", f"out={chain / 'merge'}")
        for part in ("flow", "waveform"):
            run(*chain.words(f"vocoder_{part}", chain.folder))
        yield chain


@dataclass(frozen=True)
class Walkthrough:
    """The smallest whole walkthrough: its folder, the words that made it, what it said."""

    folder: Path
    words: list[str]
    said: str

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Walkthrough:
    """`aqaa walkthrough preset=walkthrough/smoke`, for real, into a folder with an odd name."""
    for package in ("espeakng_loader", "pocketsphinx", "parselmouth"):
        pytest.importorskip(package, reason=f"{package} of the demo extra is not installed")
    folder = tmp_path_factory.mktemp("smoke") / "it's a chain (tiny), é"
    out = str(folder).replace("'", "\\'")
    words = [sys.executable, "-m", "aqaa", "walkthrough", "preset=walkthrough/smoke"]
    words.append(f"out='{out}'")
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return Walkthrough(folder, words, done.stdout)


@pytest.fixture
def after_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """``{"do": At(…)}`` is asked after every step, as if the world outside acted then."""
    from aqaa.runtime.callbacks import ShowProgress

    real = ShowProgress.on_train_batch_end
    world: dict[str, Any] = {"do": lambda step: None}

    def hook(self: Any, trainer: Any, *args: Any) -> None:
        real(self, trainer, *args)
        world["do"](trainer.global_step)

    monkeypatch.setattr(ShowProgress, "on_train_batch_end", hook)
    yield world
