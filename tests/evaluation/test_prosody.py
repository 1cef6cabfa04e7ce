import sys

import numpy as np
import pytest

from aqaa.data.domain import ANSWER_VOICE, STYLES
from aqaa.data.espeak import Espeak
from aqaa.errors import UsageError
from aqaa.evaluation.measure import CONTROL_FLOORS
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


def test_each_style_of_the_corpus_is_as_far_from_plain_as_its_floor_asks_and_more():
    pytest.importorskip("parselmouth")
    pytest.importorskip("espeakng_loader")
    synthesiser = Espeak()
    said = {
        style.name: [
            prosody(
                synthesiser.say(
                    text, voice=ANSWER_VOICE, rate_wpm=style.rate_wpm, pitch=style.pitch
                ),
                RATE_HZ,
            )
            for text in ("grass is green", "a lemon is yellow", "the capital of france is paris")
        ]
        for style in STYLES
    }
    for name, floor in CONTROL_FLOORS.items():
        measure = floor.figure.replace("_ratio", "_s" if "duration" in floor.figure else "_hz")
        ratios = [
            getattr(styled, measure) / getattr(plain, measure)
            for styled, plain in zip(said[name], said["plain"], strict=True)
        ]
        margin = 0.95 if floor.at_most else 1.05
        assert all(floor.met(ratio / margin) for ratio in ratios), (name, ratios)
