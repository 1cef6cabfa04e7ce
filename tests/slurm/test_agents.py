"""A real training under the launcher: two torchrun agents, one killed, a time that runs out."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aqaa.states import saved_states, step_of
from aqaa.storage import load_tensors
from tests.conftest import ROOT, STEPS, Chain
from tests.runs import WEIGHTS, rows, train
from tests.slurm.conftest import Cluster, executable

PATIENCE_S = 240.0
# Nothing is timed: a rank waits before a step for as long as the file `hold-STEP` lies there.
COMMAND = '''
"""The real command line; training waits where it is told to."""
import os, sys, time
from pathlib import Path

from aqaa.cli import main

def wait_where_told(here):
    from aqaa.runtime.saving import SaveState

    real = SaveState.on_train_batch_start

    def waiting(self, trainer, *args):
        hold = here / f"hold-{trainer.global_step}"
        if hold.exists():
            mark = here / f"held-{trainer.global_step}.{trainer.global_rank}"
            new = here / f".{mark.name}"  # of this rank alone: both come here at once
            new.write_text(str(os.getpid()))
            new.rename(mark)
        while hold.exists() and not self.asked:
            time.sleep(0.02)
        real(self, trainer, *args)

    SaveState.on_train_batch_start = waiting

if "--cfg" not in sys.argv:
    wait_where_told(Path(os.environ["CLUSTER_LOG"]).parent)
sys.exit(main())
'''


def wait_for(met: Callable[[], bool], job: "subprocess.Popen[str]") -> None:
    """Until a condition holds; a job that has ended will not bring it about."""
    until = time.monotonic() + PATIENCE_S
    while not met():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def unbroken(chain: Chain, root: Path) -> Path:
    """The same training left alone, in this process, which takes the batches of both ranks."""
    ranks = ("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4")
    return train(chain.words("sft_2", root, *ranks))


def assert_alike(run: Path, other: Path) -> None:
    """Figures and weights within rounding: sums of two ranks are taken in another order."""
    mine, whole = rows(run), rows(other)
    assert [int(row["step"]) for row in mine] == [*range(STEPS)]
    names = [name for name in whole[0] if "loss" in name]
    assert names and [*mine[0]] == [*whole[0]]
    for name in names:
        found, wanted = ([float(row[name] or "nan") for row in table] for table in (mine, whole))
        assert found == pytest.approx(wanted, abs=1e-5, nan_ok=True), name
    tensors, wanted = load_tensors(run / "model" / WEIGHTS), load_tensors(other / "model" / WEIGHTS)
    assert max(float((tensors[name] - wanted[name]).abs().max()) for name in wanted) < 1e-4


@pytest.fixture
def launch(cluster: Cluster) -> Cluster:
    """The cluster with the launcher, the real command line, and torchrun agents below srun."""
    shutil.copytree(ROOT / "slurm", cluster.folder / "slurm")
    bin = cluster.folder / "bin"
    cluster.env |= {
        "AQAA": str(executable(bin / "aqaa", COMMAND)),
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    executable(bin / "srun", Path(__file__).with_name("agents.py").read_text())
    return cluster


def test_a_killed_agent_comes_back_and_a_requeued_job_ends_as_the_unbroken_run(
    launch: Cluster, chain: Chain
) -> None:
    here = launch.folder
    words = chain.words("sft_2", here, "trainer=gloo", "run.save_every_s=0")
    states = here / "sft_2" / "checkpoints"

    def last_step() -> int:
        found = saved_states(states)
        return step_of(found[0]) if found else -1

    def held(step: int) -> list[Path]:
        return sorted(here.glob(f"held-{step}.[01]"))

    for step in (3, 5):
        (here / f"hold-{step}").touch()
    job = launch.start("slurm/launch.sh", *words)
    wait_for(lambda: len(held(3)) == 2 and last_step() == 2, job)
    ranks = [int(path.read_text()) for path in held(3)]
    os.kill(json.loads((here / "agents.json").read_text())[1], signal.SIGKILL)
    wait_for(lambda: not any(map(alive, ranks)), job)
    (here / "hold-3").unlink()
    wait_for(lambda: len(held(5)) == 2 and last_step() == 4, job)
    job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, said
    assert re.findall(r"the step ended with code (\d+) \(try (\d) of 4\)", said) == [
        ("137", "1")
    ], said
    assert launch.log[-1] == f"scontrol requeue {launch.env['SLURM_JOB_ID']}", said
    assert last_step() == 5, said
    assert not (here / "sft_2" / "lineage.json").exists()
    (here / "hold-5").unlink()
    again = launch.start("slurm/launch.sh", *words, SLURM_RESTART_COUNT="1")
    said, _ = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, said
    assert_alike(here / "sft_2", unbroken(chain, here / "whole"))
