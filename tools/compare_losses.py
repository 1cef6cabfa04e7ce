"""Two commits, or two configurations, trained from one seed: bit-equal, or where they part.

    python tools/compare_losses.py main HEAD -- sft preset=walkthrough/sft_1 run.steps=20
    python tools/compare_losses.py "trainer=cpu" "trainer=gloo" -- sft preset=walkthrough/sft_1 ...

A and B are commits if git knows both; else each is a set of overrides added to the words after
``--``. Every step is logged and every state kept, so the first difference is found by step, by
tensor and by rank. Exit code 0: every loss and every tensor has the same bits; 1: they differ;
2: something did not run. Parents and run folders of the configuration are read from the current
folder. States of commits that save none as safetensors are left out; losses and models remain.
"""

import argparse
import csv
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
EVERYTHING = ("trainer.log_every_n_steps=1", "run.save_every_s=0", "run.name=run", "log=csv")


class DidNotRun(Exception):
    """One of the two did not train; the message says why."""


def main(words: list[str] | None = None) -> int:
    """Train both, compare, say what was found; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("a", help="commit or overrides")
    parser.add_argument("b", help="commit or overrides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="leave the two runs in this folder")
    parser.add_argument("command", nargs="+", help="verb and overrides of both, after --")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        try:
            runs = [
                train(side, text, given.command, folder, Path(temporary), given.seed)
                for side, text in (("a", given.a), ("b", given.b))
            ]
        except DidNotRun as error:
            print(error, file=sys.stderr)
            return 2
        found = next(differences(*runs), None)
        last = len(steps_of(runs[0]))
    if found is not None:
        print(f"they differ: {found}")
        return 1
    print(f"bit-equal: losses of {last} logged steps and every saved tensor")
    return 0


def train(
    side: str, text: str, command: list[str], folder: Path, temporary: Path, seed: int
) -> Path:
    """Train one side; returns its run folder."""
    code, more = ROOT, shlex.split(text)
    if (commit := commit_of(text)) is not None:
        code, more = temporary / f"code_{side}", []
        git("worktree", "add", "--detach", str(code), commit)
    out = folder / side
    words = [*command, *EVERYTHING, f"run.root={out}", f"run.seed={seed}", *more]
    if "keep_states" in (code / "conf" / "run" / "default.yaml").read_text("utf-8"):
        words.append("run.keep_states=1000000")
    env = {**os.environ, "PYTHONPATH": str(code), "AQAA_PROGRESS": "lines"}
    try:
        # -P: the code of the current folder, a checkout too, must not come before the commit's.
        done = subprocess.run(
            [sys.executable, "-P", "-m", "aqaa", *words], env=env, capture_output=True, text=True
        )
    finally:
        if commit is not None:
            git("worktree", "remove", "--force", str(code))
    if done.returncode:
        raise DidNotRun(f"{text} did not run: {done.stderr.strip() or done.stdout.strip()}")
    return out / "run"


def commit_of(text: str) -> str | None:
    """The commit a text names, or None where it is a set of overrides."""
    if "=" in text or not text.strip():
        return None
    done = git("rev-parse", "--verify", "--quiet", f"{text}^{{commit}}", check=False)
    if done.returncode:
        raise DidNotRun(f"{text} is no commit here, and no override (key=value)")
    return done.stdout.strip()


def git(*words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Git in the checkout of this file."""
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], check=check, capture_output=True, text=True
    )


def differences(a: Path, b: Path) -> Iterator[str]:
    """What differs, in the order of steps: losses of a step, then the state saved after it."""
    one, two = rows(a), rows(b)
    saved = {int(p.name[5:]) for p in (a / "checkpoints").glob("step_*")}
    for step in sorted(set(one) | set(two) | saved):
        # A state saved at step n is that before batch n, which is logged as step n.
        yield from of_folder(a, b, f"checkpoints/step_{step:08d}", step)
        yield from of_row(one.get(step, {}), two.get(step, {}), step)
    yield from of_folder(a, b, "model", len(one))


def rows(run: Path) -> dict[int, dict[str, str]]:
    """metrics.csv by step; the digits written are those of the exact value."""
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return {int(row.pop("step")): row for row in csv.DictReader(file)}


def steps_of(run: Path) -> list[int]:
    """The steps that were logged."""
    return sorted(rows(run))


def of_row(one: dict[str, str], two: dict[str, str], step: int) -> Iterator[str]:
    """Figures that differ in one step; one that a commit does not know yet says nothing."""
    both = set(one) & set(two) if one and two else set(one) | set(two)
    for name in sorted(both):
        x, y = one.get(name, "nothing"), two.get(name, "nothing")
        if x != y:
            yield f"step {step}: {name} is {x or 'nothing'} and {y or 'nothing'}"


def of_folder(a: Path, b: Path, name: str, step: int) -> Iterator[str]:
    """Tensors that differ in the files of one folder, a rank's shard by a rank's shard."""
    files = {p.name for side in (a, b) for p in (side / name).glob("*.safetensors")}
    for file in sorted(files):
        shard = re.match(r"shard_(\d+)", file)
        where = f"step {step}: " + (f"rank {int(shard[1])}, " if shard else "") + f"{name}/{file}"
        missing = [side.name for side in (a.parent, b.parent) if not (side / "run" / name / file)
                   .is_file()]  # fmt: skip
        if missing:
            yield f"{where} is missing in {missing[0]}"
            continue
        yield from of_file(a / name / file, b / name / file, where)


def of_file(a: Path, b: Path, where: str) -> Iterator[str]:
    """Tensors that differ in two files."""
    with safe_open(a, "pt") as one, safe_open(b, "pt") as two:
        names, others = set(one.keys()), set(two.keys())
        for name in sorted(names ^ others):
            yield f"{where}: tensor {name} is only in {'a' if name in names else 'b'}"
        for name in sorted(names & others):
            x, y = one.get_tensor(name), two.get_tensor(name)
            if x.shape != y.shape or x.dtype != y.dtype:
                kinds = f"{x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}"
                yield f"{where}: tensor {name} is {kinds}"
            elif not same_bits(x, y):
                count = int((x != y).sum())
                most = float((x.double() - y.double()).abs().max())
                yield f"{where}: tensor {name} differs in {count} values, by {most:.3g} at most"


def same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two tensors of one kind have the same bytes; a NaN equals itself."""
    flat = (t.contiguous().reshape(-1).view(torch.uint8) for t in (x, y))
    return torch.equal(*flat)


if __name__ == "__main__":
    sys.exit(main())
