"""Three seeded kills of a real training, by the tool itself: none is lost; what is lost is told."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT, Chain
from tests.runs import tool as load_tool


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("torture")


def test_three_kills_are_survived(chain: Chain, tmp_path: Path) -> None:
    words = ["kills=3", "seed=1", f"folder={tmp_path / 'torture'}", f"corpus={chain / 'corpus'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "tools/torture.py", *words],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONWARNINGS": "ignore", "AQAA_PROGRESS": "lines"},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] >= 3 and told["survived"] == told["kills"]


def test_a_run_that_differs_is_not_counted_as_survived(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "start", lambda *args: 0)
    monkeypatch.setattr(tool, "ended", lambda *args: 0)
    monkeypatch.setattr(tool, "remains", lambda run: {"model": "the unbroken one"})
    monkeypatch.setattr(tool, "trial", lambda seed, *args: ({"model": "other"}, ["SIGKILL (-9)"]))
    told = tool.torture(2, 5, tmp_path / "corpus", tmp_path / "torture")
    assert told == {"kills": 2, "survived": 0, "seed": 5}


def test_every_kind_of_kill_comes_up(tool: ModuleType) -> None:
    blows = [blow for seed in range(25) for blow in tool.blows(seed, 4.0)]
    assert {blow.number for blow in blows} == set(tool.SIGNALS)
    assert blows == [blow for seed in range(25) for blow in tool.blows(seed, 4.0)]
    assert sum(blow.waits for blow in blows) > 15


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["kills=x"], "kills=x is no number"),
        (["corpus=nowhere"], "corpus=nowhere does not exist"),
        ([], "would be emptied"),
        (["bogus=1"], "bogus=1 is none of"),
    ],
)
def test_wrong_use_loses_nothing(
    words: list[str],
    sentence: str,
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = tmp_path / "runs"
    (runs / "sft_1").mkdir(parents=True)
    folder = runs if not words else tmp_path / "new"
    assert tool.main([f"folder={folder}", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert (runs / "sft_1").is_dir() and list(tmp_path.iterdir()) == [runs]
