"""Rows of a table that learn at another rate than the others.

An optimizer has one rate for a parameter, and scaling a gradient does nothing under Adam, which
divides it by its own size. So the table's group has the larger of the two rates, and after a step
the other rows are taken back to their part of the way: exact to rounding wherever step and weight
decay are in proportion to the rate, as they are in AdamW and SGD.

Letters: V rows of the table, W width, n elements that a process holds of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from aqaa.ranks import rank


@dataclass(frozen=True)
class SlowRows:
    """Rows that move by ``part`` of each step: elements ``begin`` to ``end`` of the flat table."""

    begin: int
    end: int
    part: float

    @classmethod
    def of(
        cls, shape: torch.Size, first_new: int, old_rate: float, new_rate: float
    ) -> "SlowRows | None":
        """The slower ones of a table (V, W) whose new rows begin at ``first_new``; None if none."""
        border, numel = first_new * shape[1], shape.numel()
        if old_rate == new_rate:
            return None
        if old_rate < new_rate:
            return cls(0, border, old_rate / new_rate)
        return cls(border, numel, new_rate / old_rate)

    def within(self, held: Tensor) -> Tensor:
        """Those that this process holds, a view (n,).

        Args:
            held: the table (V, W), or what ZeRO optimizes in its place: one flat stretch a rank,
                each as long as the others.
        """
        start = rank() * held.numel() if held.dim() == 1 else 0
        begin, end = (min(max(at - start, 0), held.numel()) for at in (self.begin, self.end))
        return held.detach().view(-1)[begin:end]


def slow_down(optimizer: Optimizer, rows: Mapping[str, SlowRows]) -> None:
    """Take back a part of every step of some rows.

    Args:
        optimizer: each group in ``rows`` holds one table and nothing else.
        rows: by the name of their group.
    """
    before: list[tuple[SlowRows, Tensor, Tensor]] = []

    def remember(stepping: Optimizer, *_: Any) -> None:
        before.clear()
        for group in stepping.param_groups:  # ZeRO steps one group after the other
            if group["name"] in rows and group["params"]:
                (held,) = group["params"]
                slow = rows[group["name"]]
                view = slow.within(held)
                before.append((slow, view, view.clone()))

    def take_back(*_: Any) -> None:
        for slow, view, old in before:
            torch.lerp(old, view, slow.part, out=view)
        before.clear()

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(take_back)
