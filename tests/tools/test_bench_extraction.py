"""The extraction bench, tiny: equal codes, one line of JSON, a word for what it does not take."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

BENCH = ROOT / "tools/bench/extraction.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_it_ends_with_its_record() -> None:
    done = run("size=small", "clips=6", "longest_s=3", "repeats=1")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["bench"] == "extraction" and record["equal"] is True
    assert record["ratio"] == pytest.approx(record["ours"] / record["peer"], rel=0.02)
    assert record["ratios"] == {"peer": record["ratio"]}  # small tokenizers have no stream
    assert 0 <= record["padded_share"] <= 0.05


def test_what_it_does_not_take_is_said() -> None:
    done = run("size=huge")
    assert done.returncode == 2 and "size=huge: it takes size, clips" in done.stderr
