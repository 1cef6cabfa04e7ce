import sys

import numpy as np
import pytest

from aqaa.errors import UsageError
from aqaa.evaluation.prosody import median_f0_hz, prosody, spoken_duration_s

RATE_HZ = 16_000


@pytest.mark.parametrize("duration_s", [0.3, 1.0, 2.4])
@pytest.mark.parametrize("pad_s", [0.0, 0.4])
def test_duration_counts_the_spoken_part_alone(tones, duration_s, pad_s):
    measured = spoken_duration_s(tones(duration_s, 120, pad_s), RATE_HZ)
    assert measured == pytest.approx(duration_s, abs=0.011)


@pytest.mark.parametrize("f0_hz", [65, 110, 220, 330])
def test_median_pitch_of_a_tone(tones, f0_hz):
    pytest.importorskip("parselmouth")
    assert median_f0_hz(tones(1.0, f0_hz), RATE_HZ) == pytest.approx(f0_hz, rel=0.01)


@pytest.mark.parametrize("samples", [0, 100, 16_000])
def test_silence_has_neither(samples):
    pytest.importorskip("parselmouth")
    measured = prosody(np.zeros(samples, np.float32), RATE_HZ)
    assert (measured.duration_s, measured.f0_hz) == (None, None)


def test_noise_is_not_voiced():
    pytest.importorskip("parselmouth")
    noise = np.random.default_rng(0).normal(0, 0.1, RATE_HZ).astype(np.float32)
    assert median_f0_hz(noise, RATE_HZ) is None


def test_says_how_to_install_a_missing_praat(monkeypatch, tones):
    monkeypatch.setitem(sys.modules, "parselmouth", None)
    with pytest.raises(UsageError, match=r"pip install aqaa\[demo\]"):
        median_f0_hz(tones(1.0, 120), RATE_HZ)
