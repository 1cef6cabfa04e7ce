"""Seeded kills of real trainings, by the tool itself: none is lost; what is lost is told."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT, Chain
from tests.runs import tool as load_tool


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("torture")


@pytest.mark.parametrize(("stage", "kills"), [("vocoder", 3), ("sft", 2)])
def test_kills_are_survived(stage: str, kills: int, chain: Chain, tmp_path: Path) -> None:
    words = [f"kills={kills}", "seed=1", f"stage={stage}", f"folder={tmp_path / 'torture'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "tools/torture.py", *words, f"parents={chain.folder}"],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONWARNINGS": "ignore", "AQAA_PROGRESS": "lines"},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] >= kills and told["survived"] == told["kills"]


def test_a_run_that_differs_is_not_counted_as_survived(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "start", lambda *args: [0])
    monkeypatch.setattr(tool, "ended", lambda *args: 0)
    monkeypatch.setattr(tool, "remains", lambda run: {"model": "the unbroken one"})
    monkeypatch.setattr(tool, "trial", lambda *args: ({"model": "other"}, ["SIGKILL (-9)"]))
    told = tool.torture("sft", 2, 5, tmp_path / "parents", tmp_path / "torture")
    assert told == {"stage": "sft", "kills": 2, "survived": 0, "seed": 5}


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("kills=x", "kills=x: give a whole number from 1 on"),
        ("kills=0", "kills=0: give a whole number"),
        ("seed=-1", "seed=-1: give a whole number from 0 on"),
        ("stage=dpo", "stage=dpo is none of vocoder, sft"),
        ("parents={here}/nope", "nope has no corpus: leave parents= away"),
        ("folder={here}", "holds something else than an earlier torture"),
        ("speed=1", "speed=1 is none of kills"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_removes_nothing(
    word: str,
    sentence: str,
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "runs").mkdir()
    words = [f"folder={tmp_path / 'torture'}", word.format(here=tmp_path)]
    assert tool.main(words) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_only_its_own_folder_is_removed(tool: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "torture"
    tool.clear(folder)
    (folder / "trial_0").mkdir()
    tool.clear(folder)
    assert [path.name for path in folder.iterdir()] == [tool.MARK]


def test_the_first_rank_that_fails_ends_the_others(tool: ModuleType) -> None:
    def fork(seconds: float, code: int) -> int:
        if pid := os.fork():
            return pid
        time.sleep(seconds)
        os._exit(code)

    assert tool.ended([fork(0.0, 0), fork(0.1, 0)], 10.0) == 0
    began, ranks = time.monotonic(), [fork(60.0, 0), fork(0.0, 75)]
    assert tool.ended(ranks, 10.0) == 75
    assert ranks == [] and time.monotonic() - began < 9.0


def test_every_kind_of_kill_comes_up(tool: ModuleType) -> None:
    blows = [blow for seed in range(25) for blow in tool.blows(seed, 4.0)]
    assert {blow.number for blow in blows} == set(tool.SIGNALS)
    assert blows == [blow for seed in range(25) for blow in tool.blows(seed, 4.0)]
    assert {blow.rank for blow in blows if blow.waits} == {0, 1}
    assert sum(blow.waits for blow in blows) > 15
