"""Steps for the schedule's tests: worker processes act out a word instead of a verb."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from aqaa.errors import UsageError
from aqaa.runtime import schedule
from aqaa.runtime.schedule import Schedule, Step

PATIENCE_S = 60


def command(words: tuple[str, ...]) -> None:
    """In a worker: the real command, but for what it performs."""
    schedule.perform = act
    schedule._command(words)


def act(verb: object, words: Sequence[str], *, show: bool = False) -> None:
    """Do ``words[0]`` with the file ``words[1]``; the log beside it says what ran, in order."""
    deed, path = words[0], Path(words[1])
    with open(path.parent / "log", "a") as log:
        log.write(f"{path.name}\n")
    if deed == "fail":
        raise UsageError("there is no bread:\nbuy some")
    if deed == "crash":
        raise ZeroDivisionError("division by zero")
    if deed == "vanish":
        os._exit(9)
    if deed == "meet":
        path.with_name(f"{path.name} waits").touch()
        until(path.with_name(f"{words[2]} waits"))
    if deed == "follow":
        until(path.with_name(words[2]))
    if deed == "rest":
        rest(path)
    if deed != "nothing":
        path.write_text(" ".join(words))


def rest(path: Path) -> None:
    """Last long, and save what there is when stopped."""
    path.with_name("resting").touch()
    try:
        until(path.with_name("go on"))
    except KeyboardInterrupt:
        path.with_name("saved").touch()
        raise


def until(path: Path) -> None:
    """Wait for a file; an error after a minute."""
    for _ in range(20 * PATIENCE_S):
        if path.exists():
            return
        time.sleep(0.05)
    raise TimeoutError(f"{path} never came")


def step(folder: Path, name: str, *words: str, needs: tuple[str, ...] = ()) -> Step:
    """A step that makes the file of its name."""
    deed, *more = words or ("make",)
    return Step(name, ("env", deed, str(folder / name), *more), needs, folder / name)


def interrupted(folder: Path) -> Schedule:
    """One step that ends, one that lasts, one after both."""
    steps = [
        step(folder, "short"),
        step(folder, "long", "rest"),
        step(folder, "last", needs=("short", "long")),
    ]
    return Schedule(steps, folder=folder, workers=2)


def log(folder: Path) -> list[str]:
    """Names of the steps that ran, in order, since the last call."""
    path = folder / "log"
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return names
