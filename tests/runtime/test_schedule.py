"""The schedule: order, workers side by side, marks, failures, Ctrl-C."""

import os
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from aqaa.errors import UsageError
from aqaa.runtime import schedule
from aqaa.runtime.catalogue import conf_dir
from aqaa.runtime.schedule import Schedule, Step
from aqaa.storage import read_json
from tests import steps
from tests.steps import log, step

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def acted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers act instead of working; what a schedule sets for its process does not stay."""
    monkeypatch.setattr(schedule, "_command", steps.command)
    for name in ("OMP_NUM_THREADS", "AQAA_PROGRESS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def run(folder: Path, *chain: Step, workers: int = 1) -> list[str]:
    """Run a chain; returns the steps that ran."""
    Schedule(chain, folder=folder, workers=workers).run()
    return log(folder)


def diamond(folder: Path, left: str = "make") -> list[Step]:
    return [
        step(folder, "root"),
        step(folder, "left", left, needs=("root",)),
        step(folder, "right", needs=("root",)),
        step(folder, "end", needs=("left", "right")),
        step(folder, "alone"),
    ]


def test_steps_run_in_the_order_of_their_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *diamond(tmp_path)) == ["root", "left", "right", "end", "alone"]
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["root: begun", "root: done in 0:00", "left: begun"]
    # The earlier in the list goes first as soon as it can, though it comes second here.
    late = [
        step(tmp_path, "first"),
        step(tmp_path, "second", needs=("first",)),
        step(tmp_path, "third"),
    ]
    assert run(tmp_path, *late) == ["first", "second", "third"]


def test_two_workers_run_side_by_side(tmp_path: Path) -> None:
    # Each waits for the other: one after the other, neither would end.
    chain = [step(tmp_path, "one", "meet", "two"), step(tmp_path, "two", "meet", "one")]
    assert sorted(run(tmp_path, *chain, workers=2)) == ["one", "two"]


def test_a_worker_never_waits_for_a_whole_round(tmp_path: Path) -> None:
    # "slow" ends only after "second" was made, which the other worker must begin meanwhile.
    chain = [
        step(tmp_path, "slow", "follow", "second"),
        step(tmp_path, "first"),
        step(tmp_path, "second", needs=("first",)),
    ]
    assert sorted(run(tmp_path, *chain, workers=2)) == ["first", "second", "slow"]


def test_a_failed_step_is_named_and_nothing_after_it_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the step left failed: there is no bread") as info:
        run(tmp_path, *diamond(tmp_path, "fail"))
    assert info.value.__cause__ is None
    assert log(tmp_path) == ["root", "left"]
    # Mended, it goes on from there.
    assert run(tmp_path, *diamond(tmp_path)) == ["left", "right", "end", "alone"]


def test_what_ran_beside_a_failed_step_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps_ = [step(tmp_path, "bad", "fail"), step(tmp_path, "good", "follow", "go")]
    with pytest.raises(UsageError, match="the step bad failed"):
        (tmp_path / "go").touch()
        run(tmp_path, *steps_, step(tmp_path, "after", needs=("bad", "good")), workers=2)
    assert sorted(log(tmp_path)) == ["bad", "good"]
    capsys.readouterr()
    assert run(tmp_path, step(tmp_path, "bad"), *steps_[1:]) == ["bad"]
    assert capsys.readouterr().out.startswith("kept: good\n")


def test_a_mistake_of_ours_keeps_its_kind_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as info:
        run(tmp_path, step(tmp_path, "sum", "crash"))
    assert "in the step sum" in "".join(traceback.format_exception(info.value))


def test_a_worker_that_is_killed_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ended from outside.*while greedy ran: try workers=1"):
        run(tmp_path, step(tmp_path, "small"), step(tmp_path, "greedy", "vanish"))
    assert log(tmp_path) == ["small", "greedy"]
    assert run(tmp_path, step(tmp_path, "small"), step(tmp_path, "greedy")) == ["greedy"]


def test_a_step_that_makes_nothing_failed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the step idle did not make .*idle"):
        run(tmp_path, step(tmp_path, "idle", "nothing"), step(tmp_path, "next", needs=("idle",)))
    assert log(tmp_path) == ["idle"]
    assert not (tmp_path / "steps" / "idle.json").exists()


def test_finished_steps_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, *diamond(tmp_path))
    marks = {p.stem: read_json(p) for p in (tmp_path / "steps").iterdir()}
    assert marks.keys() == {"root", "left", "right", "end", "alone"}
    assert len(set(marks.values())) == len(marks)
    capsys.readouterr()
    assert run(tmp_path, *diamond(tmp_path), workers=2) == []
    assert capsys.readouterr().out == "kept: root, left, right, end, alone\n"


def test_changed_words_rerun_a_step_and_what_needs_it(tmp_path: Path) -> None:
    run(tmp_path, *diamond(tmp_path))
    changed = diamond(tmp_path)
    changed[1] = step(tmp_path, "left", "make", "louder", needs=("root",))
    assert run(tmp_path, *changed) == ["left", "end"]
    assert run(tmp_path, *changed) == []
    changed[0] = step(tmp_path, "root", "make", "louder")
    assert run(tmp_path, *changed) == ["root", "left", "right", "end"]


def test_a_missing_product_reruns_its_step(tmp_path: Path) -> None:
    run(tmp_path, *diamond(tmp_path))
    (tmp_path / "left").unlink()
    assert run(tmp_path, *diamond(tmp_path)) == ["left"]
    (tmp_path / "steps" / "end.json").unlink()
    assert run(tmp_path, *diamond(tmp_path)) == ["end"]


def test_changed_configuration_reruns_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = shutil.copytree(conf_dir(), tmp_path / "conf")
    monkeypatch.setattr(schedule, "conf_dir", lambda: conf)
    run(tmp_path, *diamond(tmp_path))
    (conf / "README").write_text("not configuration")
    assert run(tmp_path, *diamond(tmp_path)) == []
    with open(conf / "optim" / "adamw.yaml", "a") as handle:
        handle.write("\n# another thought\n")
    assert run(tmp_path, *diamond(tmp_path)) == ["root", "left", "right", "end", "alone"]


def test_unknown_needs_and_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"step b needs \['a'\], which no earlier step makes"):
        Schedule([step(tmp_path, "b", needs=("a",))], folder=tmp_path, workers=1)
    later = [step(tmp_path, "b", needs=("a",)), step(tmp_path, "a")]
    with pytest.raises(ValueError, match="step b needs"):
        Schedule(later, folder=tmp_path, workers=1)
    with pytest.raises(UsageError, match="workers=0: at least one is needed"):
        Schedule([], folder=tmp_path, workers=0)


def test_a_real_verb_runs_and_its_error_comes_back_as_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain_words: tuple[str, ...]
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("AQAA_PROGRESS", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = Step("list", chain_words, (), tmp_path / "list")
    with pytest.raises(UsageError, match=r"the step list failed: .*nowhere.jsonl"):
        Schedule([made], folder=tmp_path, workers=1).run()


@pytest.fixture
def chain_words(tmp_path: Path) -> tuple[str, ...]:
    return ("data", "validate", f"manifest={tmp_path}/nowhere.jsonl")


# ---- Ctrl-C

SCRIPT = """
import sys
from pathlib import Path
from aqaa import cli
from aqaa.runtime import schedule
from tests import steps

schedule.perform = steps.act  # workers run these lines too

if __name__ == "__main__":
    cli._dispatch = lambda words: steps.interrupted(Path(words[0])).run() or 0
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    return [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]


def start(script: list[str]) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        script, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=env
    )


def stop(process: subprocess.Popen[str]) -> str:
    """What Ctrl-C in a terminal does; returns what was said on the error stream."""
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=steps.PATIENCE_S / 2)
    assert process.returncode == 130
    assert "Traceback" not in errors and errors.count("\n") == 2, errors
    return errors


def test_ctrl_c_saves_keeps_and_goes_on(tmp_path: Path, script: list[str]) -> None:
    process = start(script)
    steps.until(tmp_path / "steps" / "short.json")
    steps.until(tmp_path / "resting")
    assert "the same command goes on from what is finished" in stop(process)
    assert (tmp_path / "saved").exists() and not (tmp_path / "long").exists()
    assert sorted(log(tmp_path)) == ["long", "short"]
    (tmp_path / "go on").touch()
    again = start(script)
    said, errors = again.communicate(timeout=steps.PATIENCE_S)
    assert (again.returncode, errors) == (0, "")
    assert said.startswith("kept: short\nlong: begun\nlong: done")
    assert log(tmp_path) == ["long", "last"]


@pytest.mark.parametrize("after_s", [0.0, 0.2, 0.5])
def test_ctrl_c_while_workers_start_is_as_quiet(
    after_s: float, tmp_path: Path, script: list[str]
) -> None:
    process = start(script)
    assert process.stdout is not None
    assert process.stdout.readline() == "short: begun\n"
    if after_s:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=after_s)
    stop(process)
    assert "last" not in log(tmp_path)
