"""Without a GPU the check says so in one sentence and exits with 2."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def test_it_says_that_there_is_no_gpu() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gpu_check.py")],
        capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert (done.returncode, done.stdout.count("\n")) == (2, 1)
    assert "no CUDA device" in done.stdout
