"""Who decides, and that the others wait for it: ranks as their environment names them."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aqaa.runtime import launch
from tests.conftest import ROOT

NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS")
# Decides three times, as three trainings in one process: no, yes, and an error.
SCRIPT = """
import json, sys, time
from aqaa.runtime import launch

def decide(answer):
    time.sleep(0.2)
    asked.append(answer)
    if answer is None:
        raise RuntimeError("no bread")
    return answer

asked = []
found = [launch.decided(lambda a=a: decide(a)) for a in (False, True)]
print(json.dumps([launch.is_first(), asked, found]), flush=True)
launch.decided(lambda: decide(None))
"""


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),  # torchrun, the second node
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),  # started by Lightning
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # started by Lightning inside a job
    ],
)
def test_rank_0_is_known_before_there_is_a_group(
    environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launch.is_first() is first


def test_alone_one_decides_and_a_started_rank_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.decided(lambda: True) is True
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launch.decided(lambda: pytest.fail("asked")) is False
    assert launch.decided(lambda: True, looks=True) is True  # what it sees itself


def test_the_first_does_not_leave_before_all_have_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run's rank 0 ends at once, and its store with it."""
    from torch.distributed import HashStore

    store = HashStore()
    monkeypatch.setattr(launch, "_store", lambda: (store, 3))
    monkeypatch.setattr(launch, "_calls", iter((0, 0, 0)))
    heard: list[bool] = []
    first = threading.Thread(target=lambda: heard.append(launch.decided(lambda: True)))
    first.start()
    for name in ("1", "2"):
        first.join(timeout=0.3)
        assert first.is_alive()
        store.wait(["aqaa/decided/0"])
        monkeypatch.setenv("RANK", name)
        assert launch.decided(lambda: pytest.fail("asked")) is True
    first.join(timeout=10)
    assert heard == [True]


@pytest.mark.parametrize("kind", ["torchrun", "srun"])
def test_ranks_started_at_once_wait_for_the_first(kind: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
    torchrun = {"TORCHELASTIC_RUN_ID": "toy", "WORLD_SIZE": "2"}
    srun = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "127.0.0.1"}
    ranks = []
    for rank in ("0", "1"):
        mine = {"RANK": rank} | torchrun if kind == "torchrun" else {"SLURM_PROCID": rank} | srun
        environment = {**os.environ, **common, **mine, "LOCAL_RANK": rank, "SLURM_LOCALID": rank}
        words = [sys.executable, "-c", SCRIPT]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        ranks.append(subprocess.Popen(words, cwd=ROOT, env=environment, **pipes))
    (out, error), (other, silent) = (rank.communicate(timeout=120) for rank in ranks)
    assert json.loads(out) == [True, [False, True], [False, True]], error
    assert json.loads(other) == [False, [], [False, True]], silent
    assert ranks[0].returncode == 1 and "no bread" in error
    assert ranks[1].returncode == 2 and "Traceback" not in silent
