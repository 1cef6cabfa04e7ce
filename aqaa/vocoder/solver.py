"""How to go along a flow: at which times to ask the network, and what to make of its answers.

Every explicit solver of fixed times is a table: after call k the point moves by weights times the
velocities found so far. Euler uses only the last; with the earlier ones fewer calls come as near.
Three tables follow from a rule, and one was fitted to a flow: rules know nothing of how it bends.
Letters: B clips, C channels, F frames.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.losses.flow_matching import cosine_time

# Powers of uniform times, found on the walkthrough's flow: strides grow shorter towards its end.
_ADAMS_WARP, _MIDPOINT_WARP = 0.8, 0.6


class Solver(NamedTuple):
    """``times[k]`` of call k; ``weights[k]`` of velocities 0..k in the move after it."""

    times: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]


def euler(steps: int) -> Solver:
    """Straight on along the last velocity, on the cosine grid of the released flows."""
    grid = cosine_time(torch.linspace(0, 1, steps + 1))
    strides = grid.diff().tolist()
    rows = tuple((0.0,) * k + (stride,) for k, stride in enumerate(strides))
    return Solver(tuple(grid[:-1].tolist()), rows)


def adams(steps: int) -> Solver:
    """Adams-Bashforth of second order: along a line through the last two velocities."""
    grid = (torch.linspace(0, 1, steps + 1, dtype=torch.double) ** _ADAMS_WARP).tolist()
    rows: list[tuple[float, ...]] = []
    for k in range(steps):
        stride = grid[k + 1] - grid[k]
        if k == 0:
            rows.append((stride,))
            continue
        bend = stride**2 / (2 * (grid[k] - grid[k - 1]))
        rows.append((0.0,) * (k - 1) + (-bend, stride + bend))
    return Solver(tuple(grid[:-1]), tuple(rows))


def midpoint(steps: int) -> Solver:
    """Each stride, of two calls, along the velocity that is found half-way.

    Raises:
        UsageError: the number of calls is odd.
    """
    if steps % 2:
        raise UsageError(f"steps={steps}: the midpoint solver calls twice a stride, so it is even")
    grid = torch.linspace(0, 1, steps // 2 + 1, dtype=torch.double) ** _MIDPOINT_WARP
    times: list[float] = []
    rows: list[tuple[float, ...]] = []
    for now, after in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        half, before = (after - now) / 2, (0.0,) * len(times)
        times += [now, now + half]
        rows += [(*before, half), (*before, -half, 2 * half)]
    return Solver(tuple(times), tuple(rows))


# By descent on the log-mel distance to the end of the walkthrough's flow under guidance 0.7, from
# noise, over 39 clips; times are where the strides lead, so that a straight flow is exact.
_FITTED_STRIDES = (0.210538, 0.421630, 0.284187, 0.083645)
_FITTED_EARLIER = (
    (),
    (-0.156029,),
    (0.067738, -0.162431),
    (-0.041604, 0.018494, -0.036674),
)


def fitted(steps: int) -> Solver:
    """Four calls whose strides and weights were fitted to a guided flow.

    Raises:
        UsageError: another number of calls.
    """
    if steps != len(_FITTED_STRIDES):
        raise UsageError(
            f"steps={steps}: the fitted solver takes {len(_FITTED_STRIDES)}, for which it was made"
        )
    times = (0.0, *itertools.accumulate(_FITTED_STRIDES[:-1]))
    pairs = zip(_FITTED_STRIDES, _FITTED_EARLIER, strict=True)
    return Solver(times, tuple((*row, stride - sum(row)) for stride, row in pairs))


SOLVERS: dict[str, Callable[[int], Solver]] = {
    "euler": euler, "adams": adams, "midpoint": midpoint, "fitted": fitted
}  # fmt: skip


def named(name: str, steps: int) -> Solver:
    """The solver of that name with so many calls.

    Raises:
        UsageError: there is none.
    """
    if name not in SOLVERS:
        raise UsageError(f"no solver is called {name}: there are {', '.join(SOLVERS)}")
    if steps < 1:
        raise UsageError(f"steps={steps}: a flow takes at least one")
    return SOLVERS[name](steps)


def check(*, solver: str, steps: int, guidance: float) -> None:
    """Refuse a way that no flow can go.

    Raises:
        UsageError: there is no such solver, or not with so many calls; guidance is below 0.
    """
    named(solver, steps)
    if not 0 <= guidance < math.inf:
        raise UsageError(f"guidance={guidance}: it is 0 (none) or above")


def follow(
    velocity: Callable[[Tensor, Tensor], Tensor], start: Tensor, solver: Solver
) -> Tensor:
    """Where a flow leads.

    Args:
        velocity: of a point (B, C, F) at a time (1,).
        start: (B, C, F).
        solver: how to go.

    Returns:
        (B, C, F).
    """
    x, found = start, []
    for time, weights in zip(solver.times, solver.weights, strict=True):
        found.append(velocity(x, x.new_tensor([time])))
        for weight, v in zip(weights, found, strict=True):
            if weight:
                x = x + weight * v
    return x
