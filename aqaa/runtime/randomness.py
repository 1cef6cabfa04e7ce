"""The state of every random generator a step may draw from, as tensors.

Letters: R ranks.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from aqaa.ranks import rank
from aqaa.runtime.agreement import gathered


def random_states() -> dict[str, Tensor]:
    """States of Python's, numpy's and torch's generators on every rank, each (R, ...)."""
    _, words, spare = random.getstate()
    legacy = np.random.get_state(legacy=False)
    found = {
        "python": torch.tensor(words),
        "python_spare": _spare(spare),
        "numpy": torch.tensor([*legacy["state"]["key"].tolist(), legacy["state"]["pos"]]),
        "numpy_spare": _spare(legacy["gauss"] if legacy["has_gauss"] else None),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return {name: gathered(state) for name, state in found.items()}


def restore_random(states: dict[str, Tensor]) -> None:
    """Take up what :func:`random_states` said of this rank; a new rank keeps its own seed."""
    if rank() >= len(states["torch"]):
        return
    mine = {name: state[rank()] for name, state in states.items()}
    random.setstate((3, tuple(mine["python"].tolist()), _unspare(mine["python_spare"])))
    *key, position = mine["numpy"].tolist()
    spare = _unspare(mine["numpy_spare"])
    np.random.set_state(
        ("MT19937", np.array(key, dtype=np.uint32), position, int(spare is not None), spare or 0.0)
    )
    torch.set_rng_state(mine["torch"].clone())
    if "cuda" in mine and torch.cuda.is_available():
        torch.cuda.set_rng_state(mine["cuda"].clone())


@contextmanager
def undrawn() -> Iterator[None]:
    """Whatever is drawn inside, the generators of this process go on as if nothing had been."""
    python, legacy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def _spare(value: float | None) -> Tensor:
    """A generator's second Gaussian, drawn but not handed out yet; NaN where there is none."""
    return torch.tensor(math.nan if value is None else value, dtype=torch.float64)


def _unspare(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)
