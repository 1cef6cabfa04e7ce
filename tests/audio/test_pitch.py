"""Pitch and level against the definition in loops, against known tones and against Praat."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from aqaa.audio.pitch import voice

PLACES = 40


def sung(f0_hz: Tensor, harmonics: int = 8) -> Tensor:
    """A buzz (T,) whose pitch is given sample by sample."""
    phase = 2 * math.pi * (f0_hz / 16_000).cumsum(0)
    return 0.1 * sum((k * phase).sin() / k for k in range(1, harmonics + 1))


@pytest.mark.parametrize("f0_hz", [70.0, 123.0, 251.0, 440.0])
def test_a_steady_tone(f0_hz: float) -> None:
    found = voice(sung(torch.full((PLACES * 640,), f0_hz)), PLACES)
    inside = found.f0_hz[2:-2]
    assert bool(((inside / f0_hz).log2().abs() < 0.01).all())


def test_against_a_loop() -> None:
    clip = sung(150 + 40 * (torch.arange(12_800) / 3000).sin())
    found = voice(clip, 20)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    for n in range(1, 19):
        frame = np.zeros(1024)
        for i in range(1024):
            place = 640 * n - 512 + i
            frame[i] = float(clip[place]) if 0 <= place < len(clip) else 0.0
        level = math.log(math.sqrt(float((frame**2).mean())))
        assert float(found.level[n]) == pytest.approx(level, abs=1e-4)
        x = (frame - frame.mean()) * window
        best, height = 0, -math.inf
        for lag in range(32, 267):
            r = [float(x[: 1024 - k] @ x[k:]) / float(window[: 1024 - k] @ window[k:])
                 for k in (lag - 1, lag, lag + 1)]  # fmt: skip
            value = r[1] - 0.02 * math.log2(lag / 32) * float(x @ x) / float(window @ window)
            if r[1] >= max(r) and value > height:
                best, height = lag, value
        assert abs(16_000 / float(found.f0_hz[n]) - best) <= 0.5, n


def test_noise_and_silence_have_no_pitch() -> None:
    noise = 0.1 * torch.randn(PLACES * 640, generator=torch.Generator().manual_seed(0))
    assert int((voice(noise, PLACES).f0_hz > 0).sum()) <= 1
    silent = voice(torch.zeros(100), 3)
    assert silent.f0_hz.tolist() == [0, 0, 0] and bool(silent.level.isfinite().all())


def test_a_glide_is_what_praat_hears() -> None:
    parselmouth = pytest.importorskip("parselmouth")
    seconds = torch.arange(32_000) / 16_000
    clip = sung(180 + 90 * (2 * seconds).sin()) * (seconds % 1 < 0.7)
    found = voice(clip, 50).f0_hz
    pitch = parselmouth.Sound(clip.double().numpy(), sampling_frequency=16_000).to_pitch(0.01)
    heard = [pitch.get_value_at_time(0.04 * n) for n in range(50)]
    both = [n for n in range(50) if heard[n] == heard[n] and found[n] > 0]
    assert len(both) >= 30
    errors = [abs(math.log2(float(found[n]) / heard[n])) for n in both]
    assert sorted(errors)[len(errors) // 2] < 0.01 and max(errors) < 0.1
    assert sum((heard[n] == heard[n]) != bool(found[n] > 0) for n in range(50)) <= 5
