"""A cluster of stand-ins: srun starts real processes on the loopback, scontrol and sbatch write."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SRUN = '''
"""srun --kill-on-bad-exit=1, as its manual and its source have it.

A task that ends with anything but 0 has the others killed (SIGKILL); the code is the highest of all
tasks, 128 + signal for a killed one. USR1 is handed on to the tasks; TERM is an order to kill them.
"""
import os, signal, subprocess, sys, time

words = [w for w in sys.argv[1:]]
assert words[0] == "--kill-on-bad-exit=1", words
tasks = int(os.environ["SLURM_NTASKS"])
per_node = int(os.environ["SLURM_NTASKS_PER_NODE"])
processes = []
for rank in range(tasks):
    node, local = divmod(rank, per_node)
    place = {"SLURM_PROCID": rank, "SLURM_LOCALID": local, "SLURM_NODEID": node}
    env = {**os.environ, **{k: str(v) for k, v in place.items()}}
    processes.append(subprocess.Popen(words[1:], env=env))

def tell_all(number):
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)

signal.signal(signal.SIGUSR1, lambda number, frame: tell_all(number))
signal.signal(signal.SIGTERM, lambda number, frame: tell_all(signal.SIGKILL))
while any(p.poll() is None for p in processes):
    if any(p.poll() not in (None, 0) for p in processes):
        tell_all(signal.SIGKILL)
    time.sleep(0.02)
codes = [p.wait() for p in processes]
sys.exit(max(128 - c if c < 0 else c for c in codes))
'''
SCONTROL = """
import os, sys
with open(os.environ["CLUSTER_LOG"], "a") as log:
    print("scontrol", *sys.argv[1:], file=log)
if sys.argv[1:3] == ["show", "hostnames"]:
    print("127.0.0.1")
"""
SBATCH = """
import os, sys
with open(os.environ["CLUSTER_LOG"], "a+") as log:
    log.seek(0)
    number = 100 + sum(line.startswith("sbatch") for line in log)
    print("sbatch", *map(repr, sys.argv[1:]), file=log)
print(number)
"""


@dataclass
class Cluster:
    """The stand-ins in a folder, and what was asked of them."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    def start(self, *words: str, **env: str) -> "subprocess.Popen[str]":
        """Begin a script of slurm/ as the batch shell would."""
        return subprocess.Popen(
            ["bash", *words], cwd=self.folder, env={**self.env, **env}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Two nodes of one task each, all on the loopback."""
    found = Cluster(tmp_path)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "sbatch": SBATCH}.items():
        executable(tmp_path / "bin" / name, text)
    found.env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "CLUSTER_LOG": str(tmp_path / "log"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "SLURM_JOB_NAME": "aqaa",
        "GLOO_SOCKET_IFNAME": "lo",
        "AQAA_PAUSE_S": "0",
    }
    return found


def executable(path: Path, text: str) -> Path:
    """A script of this Python's."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{text.lstrip()}")
    path.chmod(0o755)
    return path


Starter = Callable[..., "subprocess.Popen[str]"]
