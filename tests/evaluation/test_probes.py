"""Linear probes against numpy's least squares and against what they must not see."""

import numpy as np
import pytest
import torch

from aqaa.evaluation.probes import classification, predict, regression, ridge, windows

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(300, 5, generator=GENERATOR, dtype=torch.float64)
FIT = torch.arange(300) % 3 != 0


def test_windows_against_a_loop() -> None:
    found = windows(X[:7], 2)
    for n in range(7):
        row = [X[n + k] if 0 <= n + k < 7 else torch.zeros(5) for k in range(-2, 3)]
        wanted = torch.stack(row, 1).flatten()  # a window's numbers stand together
        torch.testing.assert_close(found[n], wanted)


def test_ridge_against_augmented_least_squares() -> None:
    y = X @ torch.randn(5, 2, generator=GENERATOR, dtype=torch.float64) + 3
    weights, mean, spread = ridge(X, y)
    rows = np.concatenate([((X - mean) / spread).numpy(), np.ones((300, 1))], 1)
    penalty = np.sqrt(0.01 * 300) * np.eye(6)[:5]
    stacked = np.concatenate([rows, penalty])
    expected = np.linalg.lstsq(stacked, np.concatenate([y.numpy(), np.zeros((5, 2))]), rcond=None)
    np.testing.assert_allclose(weights.numpy(), expected[0], atol=1e-9)
    torch.testing.assert_close(predict((weights, mean, spread), X), y, rtol=0.1, atol=0.1)


def test_a_figure_is_of_rows_that_were_not_fitted_to() -> None:
    y = X[:, 0] * 2 + 0.5 * X[:, 1]
    assert regression(X, y, FIT).value == pytest.approx(1.0, abs=1e-3)
    spoiled = torch.where(FIT, y, torch.randn(300, generator=GENERATOR, dtype=torch.float64))
    assert regression(X, spoiled, FIT).value < 0.1  # type: ignore[operator]
    assert regression(X, y, FIT).n == 100
    noise = torch.randn(300, generator=GENERATOR)
    assert regression(X, noise, FIT).value == pytest.approx(0, abs=0.15)


def test_classes_and_chance() -> None:
    classes = (X[:, 0] > 0.4).long() + 5
    found = classification(X, classes, FIT)
    held = classes[~FIT]
    assert found.chance == pytest.approx(max(float((held == c).double().mean()) for c in (5, 6)))
    assert found.value is not None and found.value > max(0.9, found.chance)
    blind = classification(torch.zeros(300, 2), classes, FIT)
    assert blind.value == pytest.approx(found.chance, abs=0.02)


def test_what_cannot_be_measured_says_why() -> None:
    assert classification(X, torch.zeros(300), FIT).reason == "fewer than two kinds to tell apart"
    assert regression(X, torch.zeros(300), FIT).reason == "too few different values"
    assert regression(X[:0], X[:0, 0], FIT[:0]).value is None
    never_fitted = classification(X, torch.where(FIT, 1, 2), FIT)
    assert never_fitted.value is None
