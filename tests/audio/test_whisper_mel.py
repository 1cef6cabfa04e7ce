"""Whisper's log-mel against its definition in float64."""

import math

import numpy as np
import pytest
import torch

from aqaa.audio.whisper_mel import whisper_mel
from aqaa.errors import UsageError

SOUND = 0.2 * torch.randn(1700, generator=torch.Generator().manual_seed(0))


def slaney_mel(hz: float) -> float:
    return hz / (200 / 3) if hz < 1000 else 15 + math.log(hz / 1000) / (math.log(6.4) / 27)


def slaney_hz(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


def slow_mel(samples: torch.Tensor, bins: int) -> np.ndarray:
    x = np.pad(samples.double().numpy(), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * math.pi * np.arange(400) / 400)
    corners = [slaney_hz(m) for m in np.linspace(0, slaney_mel(8000), bins + 2)]
    columns = []
    for frame in range(len(samples) // 160):
        power = np.abs(np.fft.rfft(x[160 * frame : 160 * frame + 400] * window)) ** 2
        column = []
        for left, centre, right in zip(corners, corners[1:], corners[2:], strict=False):
            total = 0.0
            for k in range(201):
                hz = 40.0 * k
                weight = min((hz - left) / (centre - left), (right - hz) / (right - centre))
                total += max(0.0, weight) * 2 / (right - left) * power[k]
            column.append(math.log10(max(total, 1e-10)))
        columns.append(column)
    log_mel = np.array(columns).T
    return (np.maximum(log_mel, log_mel.max() - 8) + 4) / 4


@pytest.mark.parametrize("bins", [80, 128])
def test_the_mel_is_whispers(bins: int) -> None:
    found = whisper_mel(SOUND, bins=bins)
    assert found.shape == (bins, 10)
    np.testing.assert_allclose(found.numpy(), slow_mel(SOUND, bins), rtol=0, atol=1e-3)


def test_the_loudest_bin_decides_what_is_silent() -> None:
    loud = whisper_mel(torch.cat([SOUND, torch.zeros(3200)]))
    assert float(loud.max() - loud.min()) == pytest.approx(2.0)
    assert float(whisper_mel(torch.zeros(1600)).max()) == pytest.approx(-1.5)


def test_too_little_sound_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="200 samples are too few"):
        whisper_mel(SOUND[:200])
