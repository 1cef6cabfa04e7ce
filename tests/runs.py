"""Training runs of the tiny chain: start one, cut it, read it, compare two; tools/ as modules."""

import csv
import importlib.util
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from aqaa.runtime.compose import compose
from aqaa.storage import load_tensors, read_json

WEIGHTS = "model.safetensors"


def train(words: list[str]) -> Path:
    from aqaa.runtime import run

    return run.train(words[0], compose(words[0], words[1:]))


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as handle:
        return list(csv.DictReader(handle))


class At:
    """Does something once, after a step."""

    def __init__(self, step: int, act: Any) -> None:
        self.step, self.act = step, act

    def __call__(self, step: int) -> None:
        if step == self.step:
            self.step = -1
            self.act()


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def crash() -> None:
    raise RuntimeError("the machine fell over")


def assert_same_run(a: Path, b: Path) -> None:
    mine, other = load_tensors(a / "model" / WEIGHTS), load_tensors(b / "model" / WEIGHTS)
    assert mine.keys() == other.keys()
    assert [name for name in mine if not mine[name].equal(other[name])] == []
    assert rows(a) == rows(b)
    assert read_json(a / "lineage.json")["fingerprint"] == (
        read_json(b / "lineage.json")["fingerprint"]
    )


def tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    path = Path(__file__).resolve().parent.parent / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
