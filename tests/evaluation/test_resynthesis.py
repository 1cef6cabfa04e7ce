"""What a sound has lost on its way: known losses, measured."""

import math
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from aqaa.evaluation.resynthesis import MEASURES, measures, recognised, summary
from aqaa.signals import VOCODER_RATE_HZ, Waveform

T = np.arange(VOCODER_RATE_HZ) / VOCODER_RATE_HZ


def voice(hz: float, *, loud: float = 0.2, glide: float = 20.0) -> Waveform:
    """A sound of five harmonics that rises, and is silent in its second half."""
    turns = hz * T + glide * T**2 / 2
    sound = sum(np.sin(2 * math.pi * k * turns) / k for k in range(1, 6))
    return Waveform((loud * sound * (T < 0.5)).astype(np.float32), VOCODER_RATE_HZ)


def test_the_same_sound_has_lost_nothing_at_any_level() -> None:
    found = measures(voice(150), voice(150, loud=0.05))
    assert found["mel_distance"] == pytest.approx(0, abs=1e-4)
    assert found["f0_correlation"] == pytest.approx(1)
    assert found["f0_rmse_hz"] == pytest.approx(0, abs=0.01)
    assert found["voicing_error"] == 0


def test_another_pitch_is_seen_where_both_are_voiced() -> None:
    found = measures(voice(150), voice(165))
    assert found["f0_rmse_hz"] == pytest.approx(15, abs=1)
    assert found["f0_correlation"] > 0.95
    falling = measures(voice(150), voice(160, glide=-20.0))
    assert falling["f0_correlation"] < -0.9


def test_a_louder_band_is_its_logarithm_and_another_rate_is_no_loss() -> None:
    noise = np.random.default_rng(0).standard_normal(VOCODER_RATE_HZ).astype(np.float32)
    half = noise.copy()
    half[VOCODER_RATE_HZ // 2 :] *= 0.1
    found = measures(Waveform(0.1 * noise, VOCODER_RATE_HZ), Waveform(0.1 * half, VOCODER_RATE_HZ))
    level = math.log(math.sqrt(2 / 1.01))  # both are brought to one level
    wanted = (level + (math.log(10) - level)) / 2
    assert found["mel_distance"] == pytest.approx(wanted, abs=0.02)


def test_voicing_that_is_lost_and_what_cannot_be_measured() -> None:
    silent = Waveform(np.zeros(VOCODER_RATE_HZ, np.float32), VOCODER_RATE_HZ)
    found = measures(voice(150), silent)
    assert found["voicing_error"] == pytest.approx(0.5, abs=0.04)
    assert found["f0_correlation"] is None and found["f0_rmse_hz"] is None
    assert set(found) == set(MEASURES)
    means = summary([found, measures(voice(150), voice(150))])
    assert means["f0_correlation"] == {"value": pytest.approx(1), "n": 1}
    assert means["voicing_error"]["n"] == 2
    assert summary([])["stoi"] == {"value": None, "n": 0}


def test_recognised_are_those_heard_as_what_they_say() -> None:
    sounds = [("one", voice(100)), ("two", voice(120))]
    lengths: list[int] = []

    def ear(samples: np.ndarray) -> str:
        lengths.append(len(samples))
        return "one"

    assert recognised(sounds, ear) == (1, 2)
    assert lengths == [16_000, 16_000]  # it hears 16 kHz


def test_a_clip_too_short_for_stoi_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def stoi(a: np.ndarray, b: np.ndarray, rate_hz: int) -> float:
        if len(a) < 0.4 * rate_hz:
            warnings.warn("Not enough STFT frames", RuntimeWarning, stacklevel=1)
        return 1e-5

    monkeypatch.setitem(sys.modules, "pystoi", SimpleNamespace(stoi=stoi))
    sound = np.sin(np.arange(16_000) / 9).astype(np.float32)
    whole, short = Waveform(sound, 16_000), Waveform(sound[:4_800], 16_000)
    assert measures(whole, whole)["stoi"] == 1e-5
    assert measures(short, short)["stoi"] is None
