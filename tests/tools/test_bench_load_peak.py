"""Two ranks load a backbone into their shares: none ever holds more than its share and one file."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_no_rank_holds_more_than_its_share_and_a_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/bench/load_peak.py", "mib=96", "shards=2",
         f"folder={tmp_path}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["equal"] is True
    # It saw them load: each came to hold at least its half of the weights.
    assert all(40 < rose < told["peer"] for rose in told["ranks_mb"])
    assert list(tmp_path.iterdir()) == []
