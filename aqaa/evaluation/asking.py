"""A long row of questions that a kill may cut: every outcome is kept, and where chance stood.

Letters: none; the state of a generator passes as bytes.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from aqaa.storage import read_json, write_json

_PLAN, _CHANCE, _DONE = "plan.json", "chance.json", "done.jsonl"


class Asking:
    """Outcomes by question, in their order, kept in a folder until all are there.

    Args:
        folder: of this work; one of another plan is thrown away.
        plan: everything that decides the outcomes.
        rng: decides, as ``generator`` does, what is asked and sampled.
        generator: both go on where they stood.
    """

    def __init__(
        self, *, folder: Path, plan: dict[str, Any], rng: random.Random, generator: torch.Generator
    ) -> None:
        self._folder, self._rng, self._generator = folder, rng, generator
        self.outcomes: list[dict[str, Any]] = []
        if (folder / _PLAN).is_file() and read_json(folder / _PLAN) == plan:
            self._go_on()
        else:
            shutil.rmtree(folder, ignore_errors=True)
            write_json(folder / _PLAN, plan)

    def _go_on(self) -> None:
        if not (self._folder / _CHANCE).is_file():
            return
        chance = read_json(self._folder / _CHANCE)
        lines = (self._folder / _DONE).read_text("utf-8").splitlines()[: chance["done"]]
        self.outcomes = [json.loads(line) for line in lines]
        version, numbers, gauss = chance["rng"]
        self._rng.setstate((version, tuple(numbers), gauss))
        self._generator.set_state(torch.tensor(chance["generator"], dtype=torch.uint8))
        # A line that was written without its chance is asked again.
        (self._folder / _DONE).write_text("".join(f"{line}\n" for line in lines), "utf-8")

    def ask(
        self, rows: Sequence[dict[str, Any]], outcome: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """The outcome of every row, kept ones first."""
        yield from self.outcomes
        for row in rows[len(self.outcomes) :]:
            found = outcome(row)
            self.outcomes.append(found)
            with open(self._folder / _DONE, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(found, ensure_ascii=False) + "\n")
            write_json(self._folder / _CHANCE, {
                "done": len(self.outcomes),
                "rng": self._rng.getstate(),
                "generator": self._generator.get_state().tolist(),
            })  # fmt: skip
            yield found

    def finish(self) -> None:
        """The outcomes are where they belong, or of no use."""
        shutil.rmtree(self._folder)
