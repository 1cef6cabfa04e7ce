"""The command line: help, errors of use in one line, exit codes, and the same from a wheel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aqaa import cli
from aqaa.errors import UsageError
from aqaa.runtime import catalogue
from aqaa.runtime.verbs import VERBS

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "lightning", "transformers", "datasets", "deepspeed", "matplotlib", "wandb")
LIGHT = [
    ["--help"],
    ["sft", "--help"],
    ["data", "synthesize", "--help"],
    ["env"],
    ["sfd"],
    ["sft", "nonsense=1"],
    ["sft", "preset=nonsense"],
    ["sft", "--cfg", "job"],
    ["sft", "preset=walkthrough/sft_1", "parents.corpus=nowhere"],
    ["answer", "nowhere.wav"],
]


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line sets these for its process; here they must not stay."""
    for name in ("PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.delenv("AQAA_DEBUG", raising=False)


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_help_and_errors_of_use_import_nothing_heavy(words: list[str]) -> None:
    code = (
        f"import sys; from aqaa.cli import main; main({words!r});"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_overview_shows_every_verb_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.main(["--help"]) == cli.main(["help"]) == 0
    text = capsys.readouterr().out
    for verb in VERBS.values():
        assert verb.name in text and f"$ {verb.example}" in text


@pytest.mark.parametrize("name", list(VERBS))
def test_every_verb_has_a_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert VERBS[name].example in text
    if VERBS[name].configured:
        assert all(f"{k.name}=" in text for k in catalogue.keys(name).values() if k.value)
        assert all(f"{group}=" in text for group in catalogue.groups(name) if group != "preset")


def test_a_family_has_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "--help"]) == 0
    assert "data tokenize" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sfd"], "there is no verb sfd: the nearest is `sft`"),
        (["anwser", "q.wav"], "the nearest is `answer`"),
        (["data"], "data needs a second word"),
        (["data", "out=x"], "data needs a second word"),
        (["data", "synthesise"], "the nearest is `data synthesize`"),
        (["validate"], "the nearest is `data validate`"),
        (["sft", "--confg", "job"], "there is no flag --confg: the nearest is --cfg"),
        (["sft", "--cfg", "hydra"], "write --cfg job, not --cfg hydra"),
        (["sft", "file"], "sft takes settings as key=value, but got file"),
        (["answer", "a.wav", "b.wav"], "answer takes one question, but got a.wav and b.wav"),
        (["doctor", "x"], "doctor takes no arguments"),
        (["answer"], "answer needs question=…"),
    ],
)
def test_errors_of_use(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    streams = capsys.readouterr()
    assert sentence in streams.err and streams.err.startswith("aqaa: ")
    assert streams.err.count("\n") == 1 and not streams.out


def test_a_mistyped_key_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    name = next(n for n in catalogue.keys("sft") if "." in n and len(n) > 8)
    assert cli.main(["sft", f"{name[:-2]}{name[-1]}{name[-2]}x=1"]) == 2
    assert "sft has no key" in (text := capsys.readouterr().err) and "the nearest is" in text


@pytest.mark.parametrize(
    "path", ["q.wav", "my question (1).wav", "it's, {odd}.wav", "a\\b.wav", "end\\", "\\'", "é [x]"]
)
def test_a_positional_becomes_its_key_unchanged(path: str) -> None:
    from aqaa.runtime.compose import compose

    verb = VERBS["answer"]
    show, overrides = cli._overrides(verb, [path, "--cfg", "job"])
    assert show and compose("answer", overrides, allow_missing=True).question == path


class Stub:
    """Stands where a verb's work is done."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, *args: object, **kwargs: object) -> int:
        raise self.error


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = RuntimeError("Error in call to target")
    wrapped.__cause__ = UsageError("q.wav is\nsilent")
    for error, code, said in (
        (UsageError("no"), 2, "aqaa: no\n"),
        (wrapped, 2, "aqaa: q.wav is silent\n"),
        (KeyboardInterrupt(), 130, "stopped"),
    ):
        monkeypatch.setattr(cli, "_dispatch", Stub(error))
        assert cli.main(["env"]) == code
        text = capsys.readouterr().err
        assert said in text and "Traceback" not in text
    monkeypatch.setenv("AQAA_DEBUG", "1")
    monkeypatch.setattr(cli, "_dispatch", Stub(UsageError("no")))
    assert cli.main(["env"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setattr(cli, "_dispatch", Stub(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is not hidden
        cli.main(["env"])


def test_library_warnings_are_silent_unless_debugging() -> None:
    code = (
        "from aqaa.cli import main; import warnings; main(['--version']);"
        "warnings.warn('old', DeprecationWarning); warnings.warn('advice')"
    )
    for debug, heard in (("0", False), ("1", True)):
        env = {**os.environ, "AQAA_DEBUG": debug, "PYTHONWARNINGS": ""}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
        )
        assert ("advice" in done.stderr) is heard


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m aqaa --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and not done.stderr


@pytest.mark.slow
def test_the_wheel_carries_conf_and_composes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in ("aqaa", "conf"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-index"]
    build = ["wheel", *alone, "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", *alone, "--target", str(target), str(wheel)], check=True)
    env = {**os.environ, "PYTHONPATH": str(target)}
    where = [sys.executable, "-c", "from aqaa.runtime.catalogue import conf_dir; print(conf_dir())"]
    show = [sys.executable, "-m", "aqaa", "sft", "--cfg", "job"]
    said = [
        subprocess.run(c, capture_output=True, text=True, check=True, env=env, cwd=tmp_path).stdout
        for c in (where, show)
    ]
    assert said[0].strip() == str(target / "aqaa" / "conf")
    assert said[1].startswith(tuple(f"{name.split('.')[0]}:" for name in catalogue.keys("sft")))
    html = [p.name for p in (ROOT / "aqaa" / "evaluation").glob("*.html")]
    assert all((target / "aqaa" / "evaluation" / name).is_file() for name in html)
