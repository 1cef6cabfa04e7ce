"""One deterministic order: (seed, step) -> rows, the same on any number of ranks, O(1) to resume.

A batch holds rows of similar length; an epoch visits every row once, whole batches only. Its order
is found by one sort when its first batch is asked for.
"""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from aqaa.errors import UsageError


class BucketSampler:
    """Rows of each step, bucketed by length.

    Args:
        lengths: length of every row.
        batch: rows a step.
        seed: decides the order.
        jitter: random length added before sorting, in units of ``lengths``, so that the
            neighbours of a row differ from epoch to epoch.
    """

    def __init__(
        self, lengths: Sequence[float] | np.ndarray, *, batch: int, seed: int, jitter: float
    ) -> None:
        if not 1 <= batch <= len(lengths):
            raise UsageError(
                f"{len(lengths)} rows do not make batches of {batch}: choose 1 to {len(lengths)}"
            )
        self._lengths = np.asarray(lengths)
        self._batch = batch
        self._seed = seed
        self._jitter = jitter
        self._epoch = lru_cache(maxsize=2)(self._order)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self._lengths) // self._batch

    def rows(self, step: int) -> list[int]:
        """Rows of batch number ``step``, counted from zero over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order, starts = self._epoch(epoch)
        return order[starts[place] : starts[place] + self._batch].tolist()

    def _order(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        """Rows by their length (rows,), and where in them each batch of an epoch begins."""
        rng = random.Random(f"{self._seed}:{epoch}")
        order = np.argsort(self._lengths + _uniform(rng, len(self._lengths)) * self._jitter,
                           kind="stable")  # fmt: skip
        # The rows left over differ from epoch to epoch: start at a random place.
        whole = self.steps_per_epoch * self._batch
        start = rng.randint(0, len(order) - whole)
        starts = list(range(start, start + whole, self._batch))
        rng.shuffle(starts)
        return order, starts


def _uniform(rng: random.Random, count: int) -> np.ndarray:
    """What so many calls of ``rng.random()`` give, at once: both hold the same generator."""
    version, state, gauss = rng.getstate()
    twin = np.random.RandomState()
    twin.set_state(("MT19937", np.array(state[:-1], np.uint32), state[-1], 0, 0.0))
    drawn = twin.random_sample(count)
    after: Any = twin.get_state()
    rng.setstate((version, (*after[1].tolist(), after[2]), gauss))
    return drawn


def draws(shares: dict[str, float], steps: int, seed: int) -> list[tuple[str, int]]:
    """Which source each step draws from, and how often it was drawn before.

    Args:
        shares: weight of every source, at least one above zero.
        steps: how many steps to lay out.
        seed: decides the sequence.
    """
    names = [name for name, share in shares.items() if share > 0]
    if not names or min(shares.values()) < 0:
        raise UsageError(f"shares {shares} must not be negative and not all zero")
    rng = random.Random(f"draws:{seed}")
    picked = rng.choices(names, [shares[name] for name in names], k=steps)
    seen = dict.fromkeys(names, 0)
    out = []
    for name in picked:
        out.append((name, seen[name]))
        seen[name] += 1
    return out
