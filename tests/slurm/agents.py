"""srun as a stand-in: a torchrun agent with its rank on each node, and all nodes are this machine.

As under Slurm with --kill-on-bad-exit=1, a task that ends with anything but 0 has every process of
the step killed, also those whose parent is gone; USR1 reaches every process of the step, of which
agents take no notice; TERM to srun itself is an order to kill. The process ids of the agents stand
in ``agents.json`` beside the log.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SUBREAPER = 36  # prctl: what loses its parent becomes ours
# torchrun ends with 1 whatever its rank has said; srun passes the rank's own code on.
AGENT = """
import sys
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

try:
    main(sys.argv[1:])
except ChildFailedError as error:
    codes = [failure.exitcode for failure in error.failures.values()]
    sys.exit(max(128 - code if code < 0 else code for code in codes))
"""


def main() -> int:
    """Start the agents, wait for them, return the worst code."""
    here = Path(os.environ["CLUSTER_LOG"]).parent
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until a rank listens; agents inherit it
    nodes = int(os.environ["SLURM_NNODES"])
    agents = [subprocess.Popen(agent(node, nodes)) for node in range(nodes)]
    signal.signal(signal.SIGUSR1, lambda number, frame: tell_all(number))
    signal.signal(signal.SIGTERM, lambda number, frame: tell_all(signal.SIGKILL))
    (here / ".agents").write_text(json.dumps([agent.pid for agent in agents]))
    os.replace(here / ".agents", here / "agents.json")
    while any(agent.poll() is None for agent in agents):
        if any(agent.poll() not in (None, 0) for agent in agents):
            tell_all(signal.SIGKILL)
        time.sleep(0.02)
    tell_all(signal.SIGKILL)
    codes = [agent.wait() for agent in agents]
    return max(128 - code if code < 0 else code for code in codes)


def agent(node: int, nodes: int) -> list[str]:
    """The command line of a node's agent."""
    options, words = sys.argv[1:2], sys.argv[2:]
    assert options == ["--kill-on-bad-exit=1"], sys.argv
    place = [f"--nnodes={nodes}", f"--node-rank={node}", "--nproc-per-node=1", "--max-restarts=0"]
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{os.environ['MASTER_PORT']}"]
    more = ["--local-addr=127.0.0.1", "--monitor-interval=0.1", "--signals-to-handle=SIGHUP"]
    return [sys.executable, "-c", AGENT, *place, *meet, *more, "--no-python", *words]


def tell_all(number: int) -> None:
    """Send a signal to every process below this one."""
    for pid in below(os.getpid()):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def below(pid: int) -> list[int]:
    """Children, their children, and so on."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has just ended
    found, layer = [], [pid]
    while layer:
        layer = [child for child, parent in parents.items() if parent in layer]
        found += layer
    return found


if __name__ == "__main__":
    sys.exit(main())
