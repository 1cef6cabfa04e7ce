"""What can be read off a sequence by linear maps in closed form: ridge regression, no training.

Letters: N rows (places or clips), D numbers a row, K classes, R numbers to predict.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_RIDGE = 1e-2  # of the rows, on standardised numbers


@dataclass(frozen=True)
class Probe:
    """One figure on rows that were not fitted to, with what chance gives; None: not measured."""

    value: float | None
    chance: float
    n: int
    reason: str = ""


def windows(x: Tensor, side: int) -> Tensor:
    """(N, D) -> (N, (2 side + 1) D): each row with its neighbours; beyond the ends are zeros."""
    padded = torch.nn.functional.pad(x, (0, 0, side, side))
    return padded.unfold(0, 2 * side + 1, 1).flatten(1)


def ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (D + 1, R) that map (N, D) to (N, R), and mean and spread (D,) of the rows."""
    mean, spread = x.mean(0), x.std(0).clamp(min=1e-6)
    rows = _with_one((x - mean) / spread)
    penalty = torch.full((rows.shape[1],), _RIDGE * len(rows), dtype=rows.dtype)
    penalty[-1] = 0.0  # the constant is free
    gram = rows.T @ rows + penalty.diag()
    return torch.linalg.solve(gram, rows.T @ y), mean, spread


def predict(fitted: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
    """(N, D) -> (N, R)."""
    weights, mean, spread = fitted
    return _with_one((x - mean) / spread) @ weights


def regression(x: Tensor, y: Tensor, fit: Tensor) -> Probe:
    """Share of the variance of (N,) that (N, D) explains, on the rows that ``fit`` (N,) spares."""
    x, y = x.double(), y.double()
    held = ~fit
    if int(fit.sum()) < 2 or int(held.sum()) < 2 or not bool(y[held].std() > 0):
        return Probe(None, 0.0, int(held.sum()), "too few different values")
    found = predict(ridge(x[fit], y[fit, None]), x[held])[:, 0]
    rest = (y[held] - found).pow(2).sum() / (y[held] - y[held].mean()).pow(2).sum()
    return Probe(float(1 - rest), 0.0, int(held.sum()))


def classification(x: Tensor, classes: Tensor, fit: Tensor) -> Probe:
    """Share of the rows that ``fit`` (N,) spares whose class (N,) is told from (N, D).

    The class with the largest least-squares score; chance is always naming the commonest.
    """
    known = classes[fit].unique()
    held = ~fit & torch.isin(classes, known)
    if len(known) < 2 or not bool(held.any()):
        return Probe(None, 0.0, int(held.sum()), "fewer than two kinds to tell apart")
    wanted = (classes[fit][:, None] == known).double()
    scores = predict(ridge(x[fit].double(), wanted), x[held].double())
    right = float((known[scores.argmax(1)] == classes[held]).double().mean())
    chance = float(classes[held].unique(return_counts=True)[1].max()) / int(held.sum())
    return Probe(right, chance, int(held.sum()))


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], 1)
