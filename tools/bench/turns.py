"""What benches share that time two sides in turns: the clock, the median, the command line."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def timed(call: Callable[[], Any]) -> float:
    """Processor seconds of a call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def median_in_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, taken in turns after a round that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            taken[name].append(timed(call))
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def told(name: str, argv: Sequence[str], asked: dict[str, str]) -> dict[str, str]:
    """``asked`` with what the command line says as key=value; anything else ends the program."""
    given = dict(asked)
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in asked:
            print(f"{name}: {word}: it takes {', '.join(asked)}, as key=value", file=sys.stderr)
            raise SystemExit(2)
        given[key] = value
    return given


def elsewhere(peer: str | Path, script: str, argv: Sequence[str]) -> int:
    """Run a bench's script with the Python that has its peers, on one thread."""
    words = [word for word in argv if not word.startswith("peer=")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(peer), script, *words, "peer=here"], env=environment).returncode


def machine() -> str:
    """The machine, in words."""
    return f"{os.cpu_count()}-core {platform.machine()} CPU"
