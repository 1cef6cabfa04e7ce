"""Every command on the documentation's pages works, one after another, in an empty folder.

The pages are read in the order of recipes/README.md, then README.md. What a laptop can do is run,
made tiny by overrides added here; what needs a cluster, a GPU or minutes is composed and its
targets are checked. A command that is neither fails.
"""

import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aqaa import cli
from aqaa.answer import DEMO
from aqaa.audio.file import cut_audio
from aqaa.cli import main
from aqaa.data.corpus import Corpus, question_part
from aqaa.runtime.compose import bind_targets, check_targets, compose
from aqaa.runtime.verbs import find_verb
from tests.conftest import Walkthrough
from tests.release.test_bring_in import write_backbone, write_vocoder
from tests.release.test_tokenizer import write_release

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
SCRIPTS = sorted(path.stem for path in RECIPES.glob("*.py"))
TRAINING = ("tokenizer", "pretrain", "sft", "dpo", "vocoder")
WHOLE_CHAINS = ("walkthrough", "ablations")  # their own tests run them
LARGEST_WIDTH = 128  # of a backbone that is written here
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

COMMON = (
    *("run.steps=2", "run.threads=1", "run.save_every_s=1000"),
    *("trainer.limit_val_batches=0", "trainer.log_every_n_steps=1"),
)
BOOK = ("data.batch=4", "tokenizer.width=32", "tokenizer.blocks=1", "stage.codebook_rounds=1")
JUDGES = (
    *("stage.alone_steps=1", "stage.judges.period_channels=[2,3]"),
    "stage.judges.resolution_channels=[2,2]",
)
# What makes a verb, or a verb under one preset, tiny.
TINY: dict[str, tuple[str, ...]] = {
    "data synthesize": (
        *("questions=16", "validation=4", "test=4", "workers=1", "families=[col1,long]"),
    ),
    "init": (
        *("backbone.hidden_size=32", "backbone.intermediate_size=64"),
        *("backbone.num_hidden_layers=1",),
    ),
    "tokenizer": (*COMMON, *BOOK, "stage.codebook_batches=1"),
    "tokenizer speech/linguistic_base": (
        *(*COMMON, *BOOK, "tokenizer.codes=32", "tokenizer.inner=32"),
        "stage.codebook_batches=1",
    ),
    "tokenizer speech/semantic_base": (
        *(*COMMON, *BOOK[:1], *BOOK[3:], "tokenizer.network.width=32"),
        *("tokenizer.network.blocks=1", "tokenizer.network.codes=32"),
        *("tokenizer.network.inner=32", "stage.codebook_batches=1"),
    ),
    "pretrain": COMMON,
    "sft": COMMON,
    "dpo": (*COMMON, "data.batch=2"),
    "vocoder walkthrough/vocoder_flow": (
        *(*COMMON, "data.batch=2", "vocoder.width=32", "vocoder.code_width=16"),
        *("vocoder.time_width=16",),
    ),
    "vocoder walkthrough/vocoder_waveform": (
        *(*COMMON, "data.batch=2", "vocoder.channels=16", "vocoder.inner=32", "vocoder.blocks=1"),
    ),
    "vocoder speech/vocoder_flow": (*COMMON, "data.batch=2", "vocoder=token_flow_tiny"),
    "vocoder speech/vocoder_vocos": (*COMMON, "data.batch=2", "vocoder=vocos_tiny", *JUDGES),
    "vocoder speech/vocoder_hift": (*COMMON, "data.batch=2", "vocoder=hift_tiny", *JUDGES),
    "data pairs": ("prompts=3", "samples=1"),
    "listen": ("count=1",),
    "evaluate": ("rows=1",),
    "report": ("clips=8",),
}


@dataclass(frozen=True)
class Command:
    """One line of a ```bash block, or the last cell of a table's row, and its page."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def _pages() -> list[Path]:
    index = (RECIPES / "README.md").read_text("utf-8")
    named = re.findall(r"^\| \[\w+\]\((\w+\.md)\)", index, re.MULTILINE)
    return [RECIPES / name for name in named] + [RECIPES / "README.md", ROOT / "README.md"]


def _commands(page: Path) -> Iterator[Command]:
    text = page.read_text("utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"^\|.*\| `((?:aqaa|python|sbatch|make) .*)` \|$", text, re.MULTILINE)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield Command(page.relative_to(ROOT).as_posix(), tuple(words))


def _all_commands() -> list[Command]:
    """Every command once, where it stands first."""
    found: dict[tuple[str, ...], Command] = {}
    for page in _pages():
        for command in _commands(page):
            found.setdefault(command.words, command)
    return list(found.values())


COMMANDS = _all_commands()


class Reader:
    """Does what the pages say, in order; ``done`` says how each command went."""

    def __init__(self) -> None:
        self.done: dict[Command, str] = {}
        self._trained: set[str] = set()

    def follow(self, command: Command) -> None:
        """Run or compose one command; what went wrong is remembered, not raised."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                self.done[command] = self._follow(list(command.words))
        except Exception as error:
            self.done[command] = f"failed: {error!r}\n{said.getvalue()}"

    def _follow(self, words: list[str]) -> str:
        if words[0] == "make":
            assert set(words[1:]) <= set(TARGETS), f"the Makefile has only {TARGETS}"
            return "target"
        if words[:3] == ["python3.11", "-m", "venv"] or words == [".", ".venv/bin/activate"]:
            return "shell"
        if words[0] == "sbatch":
            place = words.index("slurm/launch.sh")
            assert all(word.startswith("--") for word in words[1:place])
            words = ["aqaa", words[place + 1], "trainer=zero3_nodes", *words[place + 2 :]]
        if words[0] == "python":
            script = Path(words[1])
            if script.parts[0] == "tools":  # its own test runs it
                assert (ROOT / "tests/tools" / f"test_{script.name}").is_file(), words[1]
                return "tool"
            assert (ROOT / script).is_file() and script.parts[0] == "recipes", words[1]
            words = ["aqaa", script.stem, *words[2:]]
        assert words[0] == "aqaa", f"nobody checks commands that begin with {words[0]}"
        return self._aqaa(words[1:])

    def _aqaa(self, words: list[str]) -> str:
        if words[0].startswith("-") or {"--cfg", "--help"} & set(words):
            assert main(words) == 0
            return "run"
        verb, rest = find_verb(words)
        if not verb.configured:
            assert main(words) in (0, 1)  # the doctor may find something
            return "run"
        if verb.forwards:  # looks ahead, and trains nothing
            assert main([*words, *TINY.get(verb.name, ())]) == 0
            return "run"
        if "base=FOLDER" in rest:  # a model that is not here
            return "composed"
        cfg = compose(verb.name, cli._overrides(verb, rest)[1])
        check_targets(cfg)
        bind_targets(cfg)
        preset = next((w.partition("=")[2] for w in rest if w.startswith("preset=")), "")
        kind = f"{verb.name} {preset}"
        place = cfg.get("trainer", {})
        large = place.get("accelerator", "cpu") != "cpu" or place.get("devices", 1) > 1
        large |= cfg.get("backbone", {}).get("hidden_size", 0) > LARGEST_WIDTH
        trained = f"{kind} {cfg.get('run', {}).get('root')}"
        if large or verb.name in WHOLE_CHAINS or trained in self._trained:
            return "composed"
        if verb.name in TRAINING:
            self._trained.add(trained)
        return self._run(words, TINY.get(kind, TINY.get(verb.name, ())), tasks=cfg.get("data"))

    def _run(self, words: list[str], tiny: tuple[str, ...], tasks: object) -> str:
        given = any(word.startswith("+data.tasks=") for word in words)
        packs = getattr(tasks, "row_tokens", None)
        names = () if given or packs else getattr(tasks, "tasks", None) or ()
        small = [f"data.tasks.{name}.batch=2" for name in names]
        if words[0] == "answer":
            return self._answer(words)
        assert main([*words, *tiny, *small]) == 0
        return "run"

    def _answer(self, words: list[str]) -> str:
        if not Path(words[1]).is_file():
            asked = next(Path("runs/evaluate/audio").glob("*-question.wav"))
            shutil.copyfile(asked, words[1])
        whole = (DEMO / "backbone").is_dir() or any(w.startswith("model=") for w in words)
        code = main(words if whole else [*words, "model=runs/model"])
        # A model of two steps may have nothing to say.
        assert code == 0 or "the model said nothing" in sys.stderr.getvalue()  # type: ignore[attr-defined]
        return "run"


def _bring_speech(corpus: Corpus) -> None:
    """What a reader of recipes/data.md has: speech as others lay it out, released models."""
    chapter = Path("LibriSpeech/dev-clean/84/121123")
    chapter.mkdir(parents=True)
    Path("dialogues").mkdir()
    lines, dialogues = [], list[dict[str, list[Any]]]()
    for number, row in enumerate(corpus.rows("train")[:12]):
        question, answer = question_part(row), row["messages"][-1]["content"]
        sounds = {"q": question, "a": answer[1]}
        for name, part in sounds.items():
            file = Path(f"dialogues/{name}{number}.wav")
            times = {"start_s": part["start"], "end_s": part["end"]}
            cut_audio(corpus.folder / part["path"], file, **times)
        name = f"84-121123-{number:04}"
        shutil.copyfile(f"dialogues/q{number}.wav", chapter / f"{name}.wav")
        lines.append(f"{name} {question['text'].upper()}\n")
        turns = [("user", f"{question['text']}<audio>"),
                 ("assistant", f"{answer[0]['text']}<audio>")]  # fmt: skip
        said = [{"role": r, "content": c} for r, c in turns]
        files = [f"{name}{number}.wav" for name in sounds]
        if number % 3:  # each begins with all that was said in the one before, up to three rounds
            said, files = dialogues[-1]["messages"] + said, dialogues[-1]["audios"] + files
        dialogues.append({"messages": said, "audios": files})
    (chapter / "84-121123.trans.txt").write_text("".join(lines))
    listed = "".join(json.dumps(dialogue) + "\n" for dialogue in dialogues)
    Path("dialogues/train.jsonl").write_text(listed)
    settings = "model: qwen\ntrain_type: lora\nmax_length: 2048\ndataset: [train.jsonl]\n"
    Path("dialogues/sft.yaml").write_text(settings)
    write_release(Path("Step-Audio-Tokenizer"), whole=True)
    write_vocoder(Path("Step-Audio-TTS-3B/CosyVoice-300M-25Hz"))
    write_backbone(Path("Step-Audio-TTS-3B"), vision=False)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, smoke: Walkthrough) -> Iterator[Reader]:
    """A reader who has followed all pages in a folder that holds a walkthrough and nothing else."""
    pytest.importorskip("espeakng_loader")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"):
            patch.setenv(name, "")  # the command line sets these for its process
        patch.chdir(tmp_path_factory.mktemp("reader"))
        shutil.copytree(smoke.folder, "runs/walkthrough")
        _bring_speech(Corpus("runs/walkthrough/corpus"))
        reader = Reader()
        for command in COMMANDS:
            reader.follow(command)
        yield reader


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_on_a_page_works(command: Command, reader: Reader) -> None:
    how = reader.done[command]
    assert how in ("run", "composed", "target", "shell", "tool"), how


def test_every_stage_is_run_and_not_only_composed(reader: Reader) -> None:
    ran = {c.words[1] for c, how in reader.done.items() if how == "run" and c.words[0] == "aqaa"}
    assert {*TRAINING, "merge", "init", "bundle", "answer", "listen", "evaluate"} <= ran


def test_every_page_is_in_the_index() -> None:
    assert {p.name for p in _pages()} == {p.name for p in RECIPES.glob("*.md")}


def test_a_command_nobody_checks_fails() -> None:
    reader, command = Reader(), Command("page", ("rm", "-rf", "runs"))
    reader.follow(command)
    assert reader.done[command].startswith("failed: ")
    assert "nobody checks commands that begin with rm" in reader.done[command]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_its_verb(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"recipes/{name}.py", "--cfg", "job"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert main([name, "--cfg", "job"]) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_tells_its_stage(name: str) -> None:
    text = (RECIPES / f"{name}.py").read_text("utf-8")
    for part in ("What goes in:", "What comes out:", "Time:", "Expect:", "Ours:", "paper"):
        assert part in text, f"recipes/{name}.py does not say {part}"
    assert (RECIPES / f"{name}.md").is_file()
    for line in re.findall(r"^    ((?:python|sbatch) .*)$", text, re.MULTILINE):
        reader, command = Reader(), Command(name, tuple(shlex.split(line)))
        reader._trained = _Everything()
        reader.follow(command)
        assert reader.done[command] in ("composed", "run"), reader.done[command]


class _Everything(set[str]):
    """Holds whatever is asked for: nothing is run, all is composed."""

    def __contains__(self, kind: object) -> bool:
        return True
