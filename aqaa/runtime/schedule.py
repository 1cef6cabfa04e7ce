"""Steps that need one another, run by a few worker processes; finished ones are kept.

A step is a command line of ours. Its mark, ``steps/NAME.json``, names what it was made from: the
command, the configuration files, the marks of the steps it needs.
"""

import hashlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

from aqaa import lineage
from aqaa.errors import UsageError
from aqaa.runtime.catalogue import conf_dir
from aqaa.runtime.command import error_of_use, perform
from aqaa.runtime.verbs import find_verb
from aqaa.storage import read_json, verify_manifest, write_json


@dataclass(frozen=True)
class Step:
    """One command of the chain.

    ``name`` of the step, ``words`` of the command, steps it ``needs``, and the folder or file it
    ``makes``.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...]
    makes: Path


class Schedule:
    """Runs steps as soon as what they need is there, the earlier in the list first.

    Args:
        steps: in any order that a single worker could run them in.
        folder: keeps the marks.
        workers: processes at a time, one thread each.
    """

    def __init__(self, steps: Sequence[Step], *, folder: Path, workers: int) -> None:
        if workers < 1:
            raise UsageError(f"workers={workers}: at least one is needed")
        self._steps = list(steps)
        self._marks = folder / "steps"
        self._workers = workers
        self._configuration = _hash_of_configuration()
        self._keys: dict[str, str] = {}
        for step in self._steps:
            unknown = [name for name in step.needs if name not in self._keys]
            if unknown:
                raise ValueError(f"step {step.name} needs {unknown}, which no earlier step makes")
            self._keys[step.name] = self._key(step)

    def run(self) -> None:
        """Run what is not finished; on Ctrl-C let every worker save what it has first."""
        done = {step.name for step in self._steps if self._finished(step)}
        waiting = [step for step in self._steps if step.name not in done]
        if done:
            print(f"kept: {', '.join(s.name for s in self._steps if s.name in done)}", flush=True)
        if not waiting:
            return
        os.environ.update({"OMP_NUM_THREADS": "1", "AQAA_PROGRESS": "lines"})
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        with ProcessPoolExecutor(self._workers, context, _begin, (stop,)) as pool:
            running: dict[Future[None], tuple[Step, float]] = {}
            try:
                while waiting or running:
                    for step in self._ready(waiting, done)[: self._workers - len(running)]:
                        waiting.remove(step)
                        print(f"{step.name}: begun", flush=True)
                        running[_submit(pool, step)] = (step, time.monotonic())
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        step, begun = running[future]
                        self._settle(step, future, time.monotonic() - begun)
                        done.add(step.name)
                        running.pop(future)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    stop.set()  # for a worker that came too late for the terminal's Ctrl-C
                self._wind_up(running, error)
                raise

    def _wind_up(self, running: dict[Future[None], tuple[Step, float]], error: object) -> None:
        """Begin nothing more, but keep what the other workers finish."""
        names = [step.name for future, (step, _) in running.items() if not future.done()]
        if names and isinstance(error, Exception):
            print(f"a step failed; waiting for {', '.join(names)} to end", flush=True)
        wait(running)
        for future, (step, begun) in running.items():
            if future.exception() is None and step.makes.exists():
                self._settle(step, future, time.monotonic() - begun)

    def _ready(self, waiting: list[Step], done: set[str]) -> list[Step]:
        return [step for step in waiting if done.issuperset(step.needs)]

    def _settle(self, step: Step, future: Future[None], seconds: float) -> None:
        try:
            future.result()
        except UsageError as error:
            raise UsageError(f"the step {step.name} failed: {error}") from None
        except BrokenProcessPool:
            raise UsageError(
                f"a worker was ended from outside, maybe for want of memory, while {step.name} "
                "ran: try workers=1; the same command goes on from what is finished"
            ) from None
        except Exception as error:
            error.add_note(f"in the step {step.name}")
            raise
        if not step.makes.exists():
            raise UsageError(f"the step {step.name} did not make {step.makes}")
        write_json(self._marks / f"{step.name}.json", self._keys[step.name])
        print(f"{step.name}: done in {int(seconds // 60)}:{int(seconds % 60):02d}", flush=True)

    def _finished(self, step: Step) -> bool:
        """Whether a step was made as it would be now, and is still whole."""
        mark = self._marks / f"{step.name}.json"
        if not step.makes.exists() or not mark.is_file():
            return False
        if read_json(mark) != self._keys[step.name]:
            return False
        if step.makes.is_file() and step.makes.name != lineage.RECORD:
            return True
        # A run is known by its record; what it made lies beside that.
        made = step.makes if step.makes.is_dir() else step.makes.parent / lineage.MODEL
        try:
            verify_manifest(made)
        except UsageError as error:
            print(f"{error}; making it again", flush=True)
            return False
        return True

    def _key(self, step: Step) -> str:
        made_of = [self._configuration, *step.words, *(self._keys[name] for name in step.needs)]
        return hashlib.sha256("\0".join(made_of).encode()).hexdigest()


def _hash_of_configuration() -> str:
    digest = hashlib.sha256()
    for path in sorted(conf_dir().rglob("*.yaml")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_stop: Event | None = None  # in a worker: set once no command may begin


def _begin(stop: Event) -> None:
    """Make a new worker ready."""
    global _stop
    _stop = stop


def _submit(pool: ProcessPoolExecutor, step: Step) -> Future[None]:
    """Hand a step to a worker; one that is started for it keeps Ctrl-C until its command begins."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_command, step.words)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _command(words: tuple[str, ...]) -> None:
    """Run one command line of ours in a worker; errors of use travel back as they are."""
    verb, overrides = find_verb(list(words))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if _stop is not None and _stop.is_set():
            raise KeyboardInterrupt
        perform(verb, overrides)
    except Exception as error:
        raise error_of_use(error) or error from None
    finally:
        # A worker at rest has nothing to save.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
