"""What processes tell one another: alone, and as two."""

import json
import os
import subprocess
import sys

import torch

from aqaa.ranks import from_first, rank, ranks, total
from tests.conftest import ROOT

SCRIPT = """
import json, torch
from aqaa.ranks import from_first, rank, ranks, total

torch.distributed.init_process_group("gloo")
mine = torch.tensor([[1.0, 2.0 + rank()]])
found = total(mine)
print(json.dumps([rank(), ranks(), found.tolist(), mine.tolist(), from_first({"a": rank()})]))
torch.distributed.destroy_process_group()
"""


def test_alone_it_talks_to_itself() -> None:
    assert (rank(), ranks()) == (0, 1)
    mine = torch.tensor([1.0])
    assert total(mine) is mine and from_first("word") == "word"


def test_two_sum_up_and_listen_to_the_first() -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    done = subprocess.run(
        [sys.executable, *words, sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("["))
    for number, line in enumerate(lines):
        mine = [[1.0, 2.0 + number]]
        assert json.loads(line) == [number, 2, [[2.0, 5.0]], mine, {"a": 0}]
    assert len(lines) == 2
