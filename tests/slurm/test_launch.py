"""The launcher against stand-ins: requeue on a signal, tries, chains, checks.

A real training under it stands in test_agents.py.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.conftest import ROOT, Cluster, executable

SCRIPTS = [*sorted((ROOT / "slurm").glob("*.sh")), ROOT / ".ci/run"]
BIN = str(Path(sys.executable).parent)
STEPS = 8
# Real ranks that meet over gloo and sum; the state is the count of finished steps.
WORKER = '''
"""A training of eight steps that keeps the laws of a stage: resume, exit codes, signals."""
import os, pathlib, signal, sys, time, datetime

if sys.argv[-2:] == ["--cfg", "job"]:
    sys.exit(2 if "wrong=1" in sys.argv else 0)

import torch
from torch import distributed

here = pathlib.Path(os.environ["CLUSTER_LOG"]).parent
state, rank = here / "state", int(os.environ["SLURM_PROCID"])
asked = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda n, f: asked.append(n))
address = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
distributed.init_process_group(
    "gloo", address, rank=rank, world_size=int(os.environ["SLURM_NTASKS"]),
    timeout=datetime.timedelta(seconds=60),
)
step = int(state.read_text()) if state.exists() else 0
while step < 8:
    x = torch.tensor([float(bool(asked)), rank + 1.0])
    distributed.all_reduce(x)
    assert x[1] == 3.0
    if x[0]:
        distributed.destroy_process_group()  # or its threads may abort the interpreter's end
        sys.exit(75)
    step += 1
    if rank == 0:
        state.write_text(str(step))
        with open(here / "steps", "a") as file:
            print(step, file=file)
    time.sleep(float(os.environ.get("STEP_S", "0")))
distributed.destroy_process_group()
'''
BROKEN = """
import sys

if "--cfg" in sys.argv:
    sys.exit(0)
print(" ".join(["words:", *sys.argv[1:]]) + chr(10), end="")  # one write: two ranks do so at once
sys.exit(1)
"""
HOPELESS = """
import os, sys, time

from aqaa.errors import UsageError
import aqaa.cli

if "--cfg" in sys.argv:
    sys.exit(0)
if os.environ["SLURM_PROCID"] == "1":
    time.sleep(600)

def fail(words):
    error = UsageError("no other try would help")
    error.code = int(os.environ["CODE"])
    raise error

aqaa.cli._dispatch = fail
sys.exit(aqaa.cli.main())
"""


@pytest.fixture
def launch(cluster: Cluster) -> Cluster:
    """The cluster with the launcher and its worker in place."""
    shutil.copytree(ROOT / "slurm", cluster.folder / "slurm")
    cluster.env["AQAA"] = str(executable(cluster.folder / "bin" / "aqaa", WORKER))
    cluster.env["PYTHONPATH"] = str(ROOT)
    return cluster


def steps(cluster: Cluster) -> list[int]:
    path = cluster.folder / "steps"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_valid(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    shellcheck = shutil.which("shellcheck", path=os.pathsep.join([BIN, os.environ["PATH"]]))
    assert shellcheck, "shellcheck is of the dev extra: pip install -e '.[dev]'"
    subprocess.run([shellcheck, str(script)], check=True)


def test_making_room_saves_and_queues_again(launch: Cluster) -> None:
    job = launch.start("slurm/launch.sh", "sft", "trainer=gloo", STEP_S="0.3")
    deadline = time.monotonic() + 200
    while len(steps(launch)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert launch.log[-1] == f"scontrol requeue {launch.env['SLURM_JOB_ID']}", said
    assert 2 <= len(steps(launch)) < STEPS
    again = launch.start("slurm/launch.sh", "sft", "trainer=gloo", SLURM_RESTART_COUNT="1")
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert steps(launch) == list(range(1, STEPS + 1))


LINGERS = """
import os, pathlib, signal, sys, time

if "--cfg" in sys.argv:
    sys.exit(0)
rank = os.environ["SLURM_PROCID"]
asked = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda n, f: asked.append(n))
(pathlib.Path(os.environ["CLUSTER_LOG"]).parent / f"ready-{rank}").touch()
while not asked:
    time.sleep(0.02)
time.sleep(0 if rank == "0" else 60)  # what libraries do at the end of a rank may take its time
sys.exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=lambda n: n.name)
def test_a_rank_that_leaves_late_does_not_keep_the_job_from_the_queue(
    launch: Cluster, number: signal.Signals
) -> None:
    # The first 75 is a bad exit to srun, which kills the others: its code is then theirs.
    launch.env["AQAA"] = str(executable(launch.folder / "bin" / "lingers", LINGERS))
    job = launch.start("slurm/launch.sh", "sft", "trainer=gloo")
    deadline = time.monotonic() + 60
    ready = [launch.folder / f"ready-{rank}" for rank in (0, 1)]
    while not all(path.exists() for path in ready) and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(number)
    said, _ = job.communicate(timeout=40)
    assert job.returncode == 0 and "try 1" not in said, said
    assert f"the step ended with code 137 after {number.name[3:]}" in said
    assert launch.log[-1] == f"scontrol requeue {launch.env['SLURM_JOB_ID']}", said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "usage: sbatch slurm/launch.sh STAGE"),
        (("answer",), "answer is no training stage"),
        (("sft", "wrong=1"), ""),
    ],
)
def test_wrong_use_ends_at_once(launch: Cluster, words: tuple[str, ...], sentence: str) -> None:
    job = launch.start("slurm/launch.sh", *words)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 2 and sentence in said
    assert "try 1" not in said and not [line for line in launch.log if "requeue" in line]


def test_a_rank_that_ends_alone_is_heard(launch: Cluster) -> None:
    """Its code is not srun's, which is that of the killed one; another try would end alike."""
    launch.env["AQAA"] = str(executable(launch.folder / "bin" / "hopeless", HOPELESS))
    for code in ("2", "65"):
        job = launch.start("slurm/launch.sh", "sft", CODE=code)
        said, _ = job.communicate(timeout=60)
        assert job.returncode == int(code), said
        assert "try 1" not in said and not [line for line in launch.log if "requeue" in line]
    assert not list(launch.folder.glob(".aqaa-verdict*"))


def test_it_gives_up_after_so_many_tries(launch: Cluster) -> None:
    launch.env["AQAA"] = str(executable(launch.folder / "bin" / "broken", BROKEN))
    job = launch.start("slurm/launch.sh", "dpo", AQAA_RESTARTS="1")
    said, _ = job.communicate(timeout=60)
    # The broken rank's own code, or that of the one that was killed beside it.
    assert job.returncode in (1, 128 + signal.SIGKILL)
    assert re.findall(r"try (\d) of (\d)", said) == [("1", "2"), ("2", "2")]
    assert not [line for line in launch.log if "requeue" in line]


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("dpo preset=paper/dpo", "dpo trainer=zero3_nodes {place} preset=paper/dpo"),
        ("vocoder a=b", "vocoder trainer=gpu {place} a=b"),
        ("sft trainer=gloo", "sft {place} trainer=gloo"),
    ],
)
def test_what_the_ranks_are_told(launch: Cluster, words: str, given: str) -> None:
    launch.env["AQAA"] = str(executable(launch.folder / "bin" / "broken", BROKEN))
    said, _ = launch.start("slurm/launch.sh", *words.split(), AQAA_RESTARTS="0").communicate()
    place = "trainer.num_nodes=2 trainer.devices=1"
    assert set(re.findall("words: (.*)", said)) == {given.format(place=place)}


def test_a_chain_waits_for_the_job_before(launch: Cluster) -> None:
    jobs = ["sft preset=paper/sft_1 'data.note=a b'", "dpo preset=paper/dpo"]
    done = launch.start("slurm/chain.sh", "--nodes=4", *jobs)
    said, _ = done.communicate(timeout=60)
    assert (done.returncode, said) == (0, "100\n101\n")
    first, second = launch.log
    head = "sbatch '--parsable' '--nodes=4'"
    assert first == f"{head} 'slurm/launch.sh' 'sft' 'preset=paper/sft_1' 'data.note=a b'"
    wait = "'--dependency=afterok:100' '--kill-on-invalid-dep=yes'"
    assert second == f"{head} {wait} 'slurm/launch.sh' 'dpo' 'preset=paper/dpo'"


def test_the_check_runs_on_a_cluster_of_cpus(launch: Cluster) -> None:
    checked = launch.start("slurm/check.sh", PYTHON="python", CUDA_VISIBLE_DEVICES="")
    said, _ = checked.communicate(timeout=240)
    assert checked.returncode == 0, said
    for part in ("2 ranks on 1 hosts", "all-reduce of 4 MB", "MB/s to disk", "everything is right"):
        assert part in said
    assert not list((launch.folder / "runs").iterdir())
