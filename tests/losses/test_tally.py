"""Sums by kind and by task equal sums by hand; rows nobody is in are left out."""

import pytest
import torch

from aqaa.losses.next_token import TokenLoss
from aqaa.losses.tally import TOTALS, figures, tally

NATS = torch.tensor([1.0, 2.0, 4.0, 8.0])
WEIGHT = torch.tensor([1.0, 0.5, 0.5, 0.0])
FOUND = TokenLoss(torch.tensor(0.0), NATS, 10 * NATS, torch.tensor([1.0, 0.0, 1.0, 1.0]), WEIGHT)
KINDS, TASKS = torch.tensor([0, 1, 0, 1]), torch.tensor([3, 3, 4, 4])


def test_sums_are_those_by_hand() -> None:
    sums = tally(FOUND, KINDS, TASKS, size=6)
    assert sums.dtype == torch.float64 and sums.shape == (6, len(TOTALS))
    assert sums.tolist() == [
        [2, 5, 50, 2, 1.5, 3],
        [2, 10, 100, 1, 0.5, 1],
        [0] * 6,
        [2, 3, 30, 1, 1.5, 2],
        [2, 12, 120, 2, 0.5, 2],
        [0] * 6,
    ]


def test_figures_are_means() -> None:
    sums = tally(FOUND, KINDS, TASKS, size=6).tolist()
    found = figures("train", sums, ["a", "b", "c", "x", "y", "z"], kinds=3)
    assert found == {
        "train/loss": pytest.approx(4 / 2),
        **{"train/a_loss": 2.5, "train/a_entropy": 25, "train/a_accuracy": 1},
        **{"train/b_loss": 5, "train/b_entropy": 50, "train/b_accuracy": 0.5},
        "train/x": pytest.approx(2 / 1.5),
        "train/y": 4,
    }


def test_nothing_seen_is_no_figure() -> None:
    assert figures("train", [[0.0] * 6] * 2, ["a", "x"], kinds=1) == {"train/loss": 0.0}
