"""Flow matching against a loop, and the path's two ends."""

from math import cos, pi

import pytest
import torch

from aqaa.losses.flow_matching import SIGMA_MIN, cosine_time, flow_matching, path


def test_path_and_loss_against_a_loop() -> None:
    noise, mel, guess = (torch.randn(2, 3, 4) for _ in range(3))
    time, mask = torch.tensor([0.25, 0.8]), torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    point, target = path(noise, mel, time)
    total, count = 0.0, 0
    for b in range(2):
        t = float(time[b])
        for c in range(3):
            for f in range(4):
                x0, x1 = float(noise[b, c, f]), float(mel[b, c, f])
                wanted = (1 - (1 - SIGMA_MIN) * t) * x0 + t * x1
                assert float(point[b, c, f]) == pytest.approx(wanted, abs=1e-6)
                velocity = x1 - (1 - SIGMA_MIN) * x0
                assert float(target[b, c, f]) == pytest.approx(velocity, abs=1e-6)
                if mask[b, f]:
                    total += (float(guess[b, c, f]) - velocity) ** 2
                    count += 1
    assert float(flow_matching(guess, target, mask)) == pytest.approx(total / count, rel=1e-5)


def test_the_ends_of_the_path() -> None:
    noise, mel = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(path(noise, mel, torch.zeros(2))[0], noise)
    torch.testing.assert_close(path(noise, mel, torch.ones(2))[0], mel, rtol=0, atol=1e-5)


def test_the_velocity_is_the_paths_derivative() -> None:
    noise, mel, time = torch.randn(1, 2, 3).double(), torch.randn(1, 2, 3).double(), 0.4
    a = path(noise, mel, torch.tensor([time], dtype=torch.float64))
    b = path(noise, mel, torch.tensor([time + 1e-4], dtype=torch.float64))
    torch.testing.assert_close((b[0] - a[0]) / 1e-4, a[1], rtol=1e-6, atol=1e-6)


def test_padding_has_no_loss_and_no_gradient() -> None:
    guess = torch.randn(1, 3, 4, requires_grad=True)
    mask = torch.tensor([[1.0, 1, 0, 0]])
    flow_matching(guess, torch.zeros(1, 3, 4), mask).backward()
    assert guess.grad is not None
    assert (guess.grad[..., 2:] == 0).all()
    assert (guess.grad[..., :2] != 0).all()
    assert flow_matching(torch.ones(1, 3, 4), torch.ones(1, 3, 4), mask) == 0


def test_early_steps_are_small() -> None:
    grid = cosine_time(torch.linspace(0, 1, 9))
    assert grid[0] == 0
    assert float(grid[-1]) == pytest.approx(1)
    steps = grid.diff()
    assert (steps.diff() > 0).all()
    assert float(grid[4]) == pytest.approx(1 - cos(pi / 4))
