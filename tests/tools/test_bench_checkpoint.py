"""The bench of a save: both sides give the same bytes back, and the last line is its record."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_it_saves_the_same_bytes_beside_its_peer(tmp_path: Path) -> None:
    words = ["mib=2", "tensors=3", "repeats=1", f"folder={tmp_path}"]
    done = subprocess.run(
        [sys.executable, ROOT / "tools/bench/checkpoint.py", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == {
        *("bench", "ours", "peer", "unit", "ratio", "equal", "machine", "versions"),
    }
    assert told["bench"] == "checkpoint" and told["equal"] is True
    assert abs(told["ratio"] - told["peer"] / told["ours"]) < 0.2 * told["ratio"]
    assert list(tmp_path.iterdir()) == []
