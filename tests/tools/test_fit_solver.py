"""The fitting of a solver: it comes nearer, stays consistent, and says what it cannot do."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aqaa.answer import DEMO
from aqaa.data.token_store import write_store
from aqaa.signals import CodePair
from tests.conftest import ROOT

TOOL = ROOT / "tools/fit_solver.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), f"flow={DEMO}/vocoder/flow", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def store(folder: Path, clips: int) -> str:
    rng = np.random.default_rng(0)
    pairs = {
        f"k{i}": CodePair(rng.integers(1024, size=4).tolist(), rng.integers(4096, size=6).tolist())
        for i in range(clips)
    }
    meta = {"tokenizer_hash": "t", "corpus_hash": "c", "question_books": "both"}
    write_store(folder, pairs, meta)
    return f"tokens={folder}"


def test_a_table_comes_nearer_on_clips_it_was_not_fitted_to(tmp_path: Path) -> None:
    done = run(store(tmp_path, 4), "clips=4", "rounds=10", "steps=3")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["off"] < 0.9 * found["off_at_first"]
    assert sum(found["strides"]) == pytest.approx(1.0, abs=1e-5) and min(found["strides"]) > 0
    assert [len(row) for row in found["earlier"]] == [0, 1, 2]


def test_too_few_clips_are_a_sentence(tmp_path: Path) -> None:
    done = run(store(tmp_path, 1))
    assert done.returncode == 1 and "holds 1 clips with both books: 2 are needed" in done.stderr
    assert "Traceback" not in done.stderr
