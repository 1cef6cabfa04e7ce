"""Kill a real training again and again, resume it, and compare it with one that was left alone.

    python tools/torture.py kills=50 seed=0 folder=runs/torture
    python tools/torture.py kills=50 seed=0 folder=runs/torture stage=sft

Every trial is a run that is killed twice, at two seeded moments and by a seeded signal (SIGKILL of
one rank, half of them inside a save; SIGTERM, SIGUSR1, SIGINT to all), resumed after each, and then
left to end. It has survived if its last saved state (weights, optimizer, random generators, data
position), its losses and its model are the unbroken run's, bit for bit. The last line of stdout is
one JSON object.

``stage=vocoder`` is one process with whole copies. ``stage=sft`` is a backbone under ZeRO-3 on two
gloo ranks, each of which writes its share of a state; as under srun the first rank that ends with
anything but 0 has the other killed.

What is trained from is made beside the folder, once; ``parents=`` names it where it is there
already (corpus, and for sft tokens and init, too).

Every start is a fork of one process that has imported everything, which saves most of the time of a
start; what a fork runs is the command line's own `main`.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from aqaa.cli import main as aqaa
from aqaa.errors import UsageError
from aqaa.states import STATES, saved_states

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Done, saved, stopped, killed; before training begins a signal simply ends the process.
ENDS = {0, 75, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGUSR1, -signal.SIGINT}
PATIENCE_S = 600.0
MARK = ".torture"  # in folders that are ours to remove


@dataclass(frozen=True)
class Stage:
    """What is tortured: its words after the verb, what it is made from, what it imports."""

    ranks: int
    parents: dict[str, str]
    words: tuple[str, ...]
    needed: tuple[str, ...]


COMMON = ("lightning.pytorch", "hydra.utils", "aqaa.runtime.compose", "aqaa.runtime.run",
          "aqaa.runtime.saving", "aqaa.runtime.callbacks", "aqaa.runtime.strategy",
          "aqaa.data.module")  # fmt: skip
STAGES = {
    "vocoder": Stage(
        ranks=1,
        parents={"corpus": "corpus"},
        words=("preset=walkthrough/vocoder_waveform", "run.steps=40", "data.batch=2",
               "data.segment_frames=12", "vocoder.channels=8", "vocoder.inner=16",
               "vocoder.blocks=1", "trainer.val_check_interval=4"),
        needed=(*COMMON, "aqaa.stages.vocoder", "aqaa.data.voice"),
    ),
    "sft": Stage(
        ranks=2,
        parents={"corpus": "corpus", "tokens": "tokens", "model": "init"},
        words=("preset=walkthrough/sft_2", "trainer=gloo", "run.steps=12", "data.code_noise=0.2",
               "data.tasks.aqtaa.batch=2", "data.validation_rows=4", "optim.warmup_steps=2",
               "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=8"),
        needed=(*COMMON, "aqaa.stages.sft", "aqaa.data.dialogues", "deepspeed"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Blow:
    """One kill, so many seconds after the start, or, if it waits, after a save has begun.

    SIGKILL meets one rank, ``rank`` modulo as many as there are; what asks for a stop meets all.
    """

    number: int
    after_s: float
    waits: bool
    rank: int


def words(name: str, parents: Path, root: Path) -> list[str]:
    """The command line of the tiny training, with its run folder in ``root``."""
    stage = STAGES[name]
    sources = (f"parents.{key}={parents / path}" for key, path in stage.parents.items())
    return [name, *stage.words[:1], f"run.root={root}", "run.name=run", *sources, *stage.words[1:],
            "run.save_every_s=0", "run.threads=1", "trainer.log_every_n_steps=1"]  # fmt: skip


def start(command: Sequence[str], log: Path, ranks: int = 1) -> list[int]:
    """Run a command line in a fork a rank; returns their process ids."""
    sys.stdout.flush()
    port = free_port()
    found = []
    for rank in range(ranks):
        if pid := os.fork():
            found.append(pid)
            continue
        if ranks > 1:  # as torchrun would say it
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "GROUP_RANK": 0,
                     "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                     "TORCHELASTIC_RUN_ID": "torture"}  # fmt: skip
            os.environ |= {name: str(value) for name, value in place.items()}
        perform(command, log)
    return found


def perform(command: Sequence[str], log: Path) -> None:
    """The command line in this fork, which ends with it."""
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


def free_port() -> int:
    """A port of the loopback that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def ended(pids: list[int], within_s: float) -> int | None:
    """Exit code of the first rank that failed (minus the signal that killed it), None if all run.

    The others are killed then; 0 once all have ended with it.
    """
    until = time.monotonic() + within_s
    while True:
        for pid in list(pids):
            if code := reaped(pid, pids):
                for other in list(pids):
                    os.kill(other, signal.SIGKILL)
                    os.waitpid(other, 0)
                    pids.remove(other)
                return code
        if not pids:
            return 0
        if time.monotonic() > until:
            return None
        time.sleep(0.002)


def reaped(pid: int, pids: list[int]) -> int:
    """The exit code of a rank that has ended, which ``pids`` then lacks; 0 while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    if not found:
        return 0
    pids.remove(pid)
    return os.waitstatus_to_exitcode(status)


def strike(pids: list[int], blow: Blow, states: Path) -> int:
    """Kill ranks as told; returns the exit code."""
    if blow.waits:
        until = time.monotonic() + PATIENCE_S
        while not any(states.glob(".step_*")) and time.monotonic() < until:
            if (code := ended(pids, 0.0)) is not None:
                return code
    if (code := ended(pids, blow.after_s)) is not None:
        return code  # it was faster
    hard = blow.number == signal.SIGKILL
    for pid in [pids[blow.rank % len(pids)]] if hard else pids:
        os.kill(pid, blow.number)
    code = ended(pids, PATIENCE_S)
    if code is None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise SystemExit(f"torture: signal {blow.number} did not end the processes {pids}")
    return code


def remains(run: Path) -> dict[str, str]:
    """Hashes of all that must be equal: last state, figures, model."""
    last = saved_states(run / STATES)[0]
    found = {f"{last.name}/{p.name}": p.read_bytes() for p in last.glob("*.safetensors")}
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
        number, rank = rng.choice(SIGNALS), rng.randrange(2)
        if number == signal.SIGKILL and rng.random() < 0.5:
            found.append(Blow(number, rng.uniform(0.0, 0.02), True, rank))  # inside the save
        else:  # anywhere, the start included; of the other signals most once training has begun
            waits = number != signal.SIGKILL and rng.random() < 0.8
            after_s = rng.uniform(0.0, span_s / (4 if waits else 1))
            found.append(Blow(number, after_s, waits, rank))
    return found


def trial(
    name: str, seed: int, parents: Path, root: Path, span_s: float
) -> tuple[dict[str, str], list[str]]:
    """One run, struck twice and finished; what remains of it, and how it was killed."""
    command, log, ranks = words(name, parents, root), root / "log", STAGES[name].ranks
    told = []
    for blow in blows(seed, span_s):
        code = strike(start(command, log, ranks), blow, root / "run" / STATES)
        in_save = blow.waits and blow.number == signal.SIGKILL
        kill = signal.Signals(blow.number).name + (" in a save" if in_save else "")
        if ranks > 1 and blow.number == signal.SIGKILL:
            kill += f" of rank {blow.rank}"
        if code not in ENDS:
            raise SystemExit(f"torture: trial {seed}, {kill}: exit code {code}, see {log}")
        if code != 0:  # else it was faster
            told.append(f"{kill} ({code})")
    code = ended(start(command, log, ranks), PATIENCE_S)
    if code != 0:
        raise SystemExit(f"torture: trial {seed} did not end: exit code {code}, see {log}")
    return remains(root / "run"), told


def torture(name: str, kills: int, seed: int, parents: Path, folder: Path) -> dict[str, Any]:
    """Run the trials; returns the count of those that survived."""
    clear(folder)
    alone = folder / "alone"
    alone.mkdir()
    begun = time.monotonic()
    command = words(name, parents, alone)
    if ended(start(command, alone / "log", STAGES[name].ranks), PATIENCE_S) != 0:
        raise SystemExit(f"torture: the unbroken run failed, see {alone / 'log'}")
    span_s = time.monotonic() - begun
    wanted = remains(alone / "run")
    survived = done = 0
    for number in count(seed):
        if done >= kills:
            break
        root = folder / f"trial_{number}"
        root.mkdir()
        found, told = trial(name, number, parents, root, span_s)
        same = found == wanted
        survived += same * len(told)
        done += len(told)
        print(f"trial {number}: {', '.join(told)}: {'equal' if same else 'DIFFERS'}", flush=True)
        if same:
            shutil.rmtree(root)
    return {"stage": name, "kills": done, "survived": survived, "seed": seed}


def clear(folder: Path) -> None:
    """An empty folder with our mark; one without it is refused, unless it is empty."""
    if folder.exists() and not (folder / MARK).is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise UsageError(
                f"folder={folder} holds something else than an earlier torture, so it is not "
                f"removed: choose another"
            )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()


def make_parents(name: str, parents: Path) -> None:
    """What the stage is trained from, as far as it is not there; forks stay fresh of it."""
    books = [f"{book}={parents}/tokenizer_{book}/model" for book in ("linguistic", "semantic")]
    steps: dict[str, list[list[str]]] = {
        "corpus": [["data", "synthesize", f"{parents}/corpus", "questions=20", "validation=4",
                    "test=4", "workers=1"]],
        "tokens": [
            *(["tokenizer", f"preset=walkthrough/tokenizer_{book}", f"run.root={parents}",
               f"run.name=tokenizer_{book}", f"parents.corpus={parents}/corpus", "run.steps=4",
               "data.batch=4", "tokenizer.width=32", "tokenizer.blocks=1",
               "stage.codebook_rounds=1", "stage.codebook_batches=2"]
              for book in ("linguistic", "semantic")),
            ["data", "tokenize", f"{parents}/corpus", f"out={parents}/tokens", *books],
        ],
        "init": [["init", f"{parents}/init", f"codes={parents}/tokens/tokenizer",
                  f"texts={parents}/corpus/domain.json", "backbone.hidden_size=32",
                  "backbone.intermediate_size=64", "backbone.num_hidden_layers=2"]],
    }  # fmt: skip
    parents.mkdir(parents=True, exist_ok=True)
    for part in STAGES[name].parents.values():
        for command in [] if (parents / part).is_dir() else steps[part]:
            log = parents / "log"
            if ended(start(command, log), PATIENCE_S) != 0:
                raise SystemExit(f"torture: {' '.join(command[:2])} failed, see {log}")


def settings(argv: Sequence[str]) -> dict[str, str]:
    """The words of the command line, each checked; nothing is made or removed yet.

    Raises:
        UsageError: a word, number, stage or folder that does not fit.
    """
    asked = {"kills": "50", "seed": "0", "stage": "vocoder", "parents": ""}
    asked["folder"] = "runs/torture"
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in asked:
            raise UsageError(f"{word} is none of {', '.join(asked)}, as key=value")
        asked[key] = value
    for key, least in (("kills", 1), ("seed", 0)):
        if not asked[key].isascii() or not asked[key].isdigit() or int(asked[key]) < least:
            raise UsageError(f"{key}={asked[key]}: give a whole number from {least} on")
    if asked["stage"] not in STAGES:
        raise UsageError(f"stage={asked['stage']} is none of {', '.join(STAGES)}")
    for part in STAGES[asked["stage"]].parents.values():
        if asked["parents"] and not (Path(asked["parents"]) / part).is_dir():
            raise UsageError(
                f"parents={asked['parents']} has no {part}: leave parents= away, and it is made"
            )
    return asked


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0 if all survived."""
    try:
        asked = settings(argv)
        folder, name = Path(asked["folder"]), asked["stage"]
        clear(folder)  # before minutes are spent
    except UsageError as error:
        print(f"torture: {error}", file=sys.stderr)
        return 2
    parents = Path(asked["parents"] or f"{folder}_parents")
    make_parents(name, parents)
    os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported
    for module in STAGES[name].needed:
        import_module(module)
    result = torture(name, int(asked["kills"]), int(asked["seed"]), parents, folder)
    print(json.dumps(result))
    return int(result["survived"] != result["kills"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
