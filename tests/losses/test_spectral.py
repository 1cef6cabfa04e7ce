"""Spectral distance: zero for equals, against a direct transform, blind to nothing audible."""

import pytest
import torch

from aqaa.losses.spectral import magnitude, multi_resolution

SIZES = [64, 128]


def test_magnitude_against_a_direct_transform() -> None:
    samples = torch.randn(1, 200)
    window = torch.hann_window(64)
    padded = torch.nn.functional.pad(samples[0], (32, 32))
    n = torch.arange(64, dtype=torch.float64)
    kernel = torch.exp(-2j * torch.pi * torch.arange(33)[:, None] * n / 64)
    found = magnitude(samples, 64)
    assert found.shape == (1, 33, 200 // 16 + 1)
    for frame in range(found.shape[2]):
        part = (padded[16 * frame : 16 * frame + 64] * window).to(kernel.dtype)
        expected = (kernel @ part).abs().clamp(min=1e-5).float()
        torch.testing.assert_close(found[0, :, frame], expected, rtol=1e-3, atol=1e-4)


def test_equal_sounds_have_no_distance_and_others_have() -> None:
    sound = torch.randn(2, 2000)
    assert multi_resolution(sound, sound, SIZES) == 0
    near = multi_resolution(sound + 0.01 * torch.randn(2, 2000), sound, SIZES)
    far = multi_resolution(torch.randn(2, 2000), sound, SIZES)
    assert 0 < near < far


def test_twice_as_loud_by_hand() -> None:
    sound = torch.randn(1, 4000)
    found = multi_resolution(2 * sound, sound, [256])
    # Spectral convergence is 1, the log distance log 2 (bar bins below the floor).
    assert float(found) == pytest.approx(1 + 0.5 * 0.6931, rel=1e-3)


def test_silence_has_finite_gradients() -> None:
    sound = torch.zeros(1, 2000, requires_grad=True)
    multi_resolution(sound, torch.zeros(1, 2000), SIZES).backward()
    assert sound.grad is not None
    assert sound.grad.isfinite().all()
