"""Kill a real training again and again, resume it, and compare it with one that was left alone.

    python tools/torture.py kills=50 seed=0 folder=runs/torture

Every trial is a run of `aqaa vocoder` that is killed twice, at two seeded moments and by a seeded
signal (SIGKILL, half of them inside a save; SIGTERM, SIGUSR1, SIGINT), resumed after each, and then
left to end. It has survived if its last saved state (weights, optimizer, random generators, data
position), its losses and its model are the unbroken run's, bit for bit. The last line of stdout is
one JSON object.

Every start is a fork of one process that has imported everything, which saves most of the time of a
start; what a fork runs is the command line's own `main`.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from aqaa.cli import main as aqaa
from aqaa.runtime.states import STATES, saved_states

STEPS = 40
TINY = ("data.batch=2", "data.segment_frames=12", "vocoder.channels=8", "vocoder.inner=16")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Done, saved, stopped, killed; before training begins a signal simply ends the process.
ENDS = {0, 75, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGUSR1}
NEEDED = ("lightning.pytorch", "hydra.utils", "aqaa.runtime.compose", "aqaa.runtime.run",
          "aqaa.runtime.saving", "aqaa.runtime.callbacks", "aqaa.runtime.strategy",
          "aqaa.stages.vocoder", "aqaa.data.voice", "aqaa.data.module")  # fmt: skip
PATIENCE_S = 600.0
MARK = ".torture"  # of a folder that may be emptied


@dataclass(frozen=True)
class Blow:
    """One kill, so many seconds after the start, or, if it waits, after a save has begun."""

    number: int
    after_s: float
    waits: bool


def words(corpus: Path, root: Path) -> list[str]:
    """The command line of the tiny training, with its run folder in ``root``."""
    return [
        *("vocoder", "preset=walkthrough/vocoder_waveform", "run.name=run", f"run.root={root}"),
        *(f"parents.corpus={corpus}", f"run.steps={STEPS}", "run.save_every_s=0", *TINY),
        *("trainer.val_check_interval=4", "trainer.log_every_n_steps=1", "vocoder.blocks=1"),
    ]


def start(command: Sequence[str], log: Path) -> int:
    """Run a command line in a fork; returns its process id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(number, 1)
    os.dup2(number, 2)
    code = 1
    try:
        code = aqaa(list(command))
    except KeyboardInterrupt:  # between the command's end and this line
        code = 130
    except BaseException as error:  # a fork must never come back
        print(repr(error), file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, within_s: float) -> int | None:
    """Exit code of a fork (minus the signal that killed it), None if it still runs."""
    until = time.monotonic() + within_s
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.002)


def strike(pid: int, blow: Blow, states: Path) -> int:
    """Kill a fork as told; returns its exit code."""
    if blow.waits:
        until = time.monotonic() + PATIENCE_S
        while not any(states.glob(".step_*")) and time.monotonic() < until:
            if (code := ended(pid, 0.0)) is not None:
                return code
    if (code := ended(pid, blow.after_s)) is not None:
        return code  # it was faster
    os.kill(pid, blow.number)
    code = ended(pid, PATIENCE_S)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        ended(pid, PATIENCE_S)
        raise SystemExit(f"torture: signal {blow.number} did not end process {pid}")
    return code


def remains(run: Path) -> dict[str, str]:
    """Hashes of all that must be equal: last state, figures, model."""
    last = saved_states(run / STATES)[0]
    found = {f"{last.name}/tensors": (last / "state.safetensors").read_bytes()}
    tree = json.loads((last / "state.json").read_text())
    for callback in tree["tree"]["callbacks"].values():
        callback.pop("seconds", None)  # the clock is the one thing that may differ
    found[f"{last.name}/tree"] = json.dumps(tree).encode()
    for name in ("metrics.csv", "model/model.safetensors", "model/config.json"):
        found[name] = (run / name).read_bytes()
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def blows(seed: int, span_s: float) -> list[Blow]:
    """The two kills of a trial."""
    rng = random.Random(seed)
    found = []
    for _ in range(2):
        number = rng.choice(SIGNALS)
        if number == signal.SIGKILL and rng.random() < 0.5:
            found.append(Blow(number, rng.uniform(0.0, 0.02), waits=True))  # inside the save
        else:  # anywhere, the start included; of the other signals most once training has begun
            waits = number != signal.SIGKILL and rng.random() < 0.8
            found.append(Blow(number, rng.uniform(0.0, span_s / (4 if waits else 1)), waits))
    return found


def trial(seed: int, corpus: Path, root: Path, span_s: float) -> tuple[dict[str, str], list[str]]:
    """One run, struck twice and finished; what remains of it, and how it was killed."""
    command, log = words(corpus, root), root / "log"
    told = []
    for blow in blows(seed, span_s):
        code = strike(start(command, log), blow, root / "run" / STATES)
        in_save = blow.waits and blow.number == signal.SIGKILL
        name = signal.Signals(blow.number).name + (" in a save" if in_save else "")
        if code not in ENDS:
            raise SystemExit(f"torture: trial {seed}, {name}: exit code {code}, see {log}")
        if code != 0:  # else it was faster
            told.append(f"{name} ({code})")
    code = ended(start(command, log), PATIENCE_S)
    if code != 0:
        raise SystemExit(f"torture: trial {seed} did not end: exit code {code}, see {log}")
    return remains(root / "run"), told


def torture(kills: int, seed: int, corpus: Path, folder: Path) -> dict[str, Any]:
    """Run the trials; returns the count of those that survived."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    begun = time.monotonic()
    (folder / "alone").mkdir()
    code = ended(start(words(corpus, folder / "alone"), folder / "alone" / "log"), PATIENCE_S)
    if code != 0:
        raise SystemExit(f"torture: the unbroken run failed, see {folder / 'alone' / 'log'}")
    span_s = time.monotonic() - begun
    wanted = remains(folder / "alone" / "run")
    survived = done = 0
    for number in count(seed):
        if done >= kills:
            break
        root = folder / f"trial_{number}"
        root.mkdir()
        found, told = trial(number, corpus, root, span_s)
        same = found == wanted
        survived += same * len(told)
        done += len(told)
        print(f"trial {number}: {', '.join(told)}: {'equal' if same else 'DIFFERS'}", flush=True)
        if same:
            shutil.rmtree(root)
    return {"kills": done, "survived": survived, "seed": seed}


def unfit(folder: Path, asked: dict[str, str]) -> str:
    """What is wrong with the words of the command line, '' if nothing is."""
    for name in ("kills", "seed"):
        if not asked[name].isdecimal():
            return f"{name}={asked[name]} is no number"
    if folder.exists() and not (folder / MARK).is_file():
        return f"folder={folder} is there and not of a torture before: it would be emptied"
    if asked["corpus"] and not Path(asked["corpus"]).is_dir():
        return f"corpus={asked['corpus']} does not exist: leave it out to have one made"
    return ""


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0 if all survived."""
    asked = {"kills": "50", "seed": "0", "folder": "runs/torture", "corpus": ""}
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in asked:
            print(f"torture: {word} is none of {', '.join(asked)}, as key=value", file=sys.stderr)
            return 2
        asked[key] = value
    folder = Path(asked["folder"])
    if wrong := unfit(folder, asked):
        print(f"torture: {wrong}", file=sys.stderr)
        return 2
    corpus = Path(asked["corpus"] or f"{folder}_corpus")
    if not corpus.is_dir() and aqaa(["data", "synthesize", str(corpus), "questions=20",
                                     "validation=4", "test=4", "workers=1"]):  # fmt: skip
        return 2
    for name in NEEDED:
        import_module(name)
    result = torture(int(asked["kills"]), int(asked["seed"]), corpus, folder)
    print(json.dumps(result))
    return int(result["survived"] != result["kills"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
