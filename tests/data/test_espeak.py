"""The synthesiser: sound, phones, voices, and what happens without it."""

import sys

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")

from aqaa.audio.file import PEAK
from aqaa.data.domain import ANSWER_VOICE, STYLES, VOICES
from aqaa.data.espeak import Espeak
from aqaa.errors import UsageError

ANSWER = "banana is yellow"


@pytest.fixture(scope="module")
def espeak() -> Espeak:
    return Espeak()


def say(espeak: Espeak, text: str = ANSWER, **how: object) -> np.ndarray:
    return espeak.say(text, **{"voice": "en-us", "rate_wpm": 160, "pitch": 50, **how})


def test_sound_is_trimmed_mono_at_16_khz_with_half_the_peak(espeak: Espeak) -> None:
    samples = say(espeak)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert np.abs(samples).max() == pytest.approx(PEAK, rel=1e-5)
    assert 0.6 < len(samples) / 16_000 < 1.6
    loud = np.flatnonzero(np.abs(samples) > 0.02 * PEAK)
    assert loud[0] <= 480 and len(samples) - loud[-1] <= 801


def test_rate_and_pitch_are_heard(espeak: Espeak) -> None:
    lengths = {style.name: len(say(espeak, rate_wpm=style.rate_wpm)) for style in STYLES}
    assert lengths["slow"] > 1.25 * lengths["plain"] > 1.25 * 1.2 * lengths["quick"]

    def fundamental_hz(pitch: int) -> float:
        samples = say(espeak, "aaa", pitch=pitch)[2000:6000]
        spectrum = np.fft.rfft(samples, 32_768)
        correlation = np.fft.irfft(np.abs(spectrum) ** 2)[40:250]  # 64..400 Hz
        return 16_000 / (40 + int(correlation.argmax()))

    assert fundamental_hz(95) > 1.3 * fundamental_hz(50) > 1.3 * 1.1 * fundamental_hz(5)


def test_every_voice_of_the_domain_loads_and_is_its_own(espeak: Espeak) -> None:
    heard: dict[bytes, str] = {}
    for voice in [v for split in VOICES.values() for v in split]:
        espeak._use(voice)  # raises where the voice does not load
        key = say(espeak, "one", voice=voice).tobytes()
        assert key not in heard, f"{voice} sounds exactly like {heard[key]}"
        heard[key] = voice
    assert ANSWER_VOICE in VOICES["train"]


@pytest.mark.parametrize("voice", ["en-us+nobody", "nowhere", "en-us+Mr"])
def test_a_voice_that_does_not_load_is_an_error(espeak: Espeak, voice: str) -> None:
    with pytest.raises(UsageError, match=r"no voice"):
        say(espeak, voice=voice)
    assert len(say(espeak))  # and the next one is not harmed


def test_text_without_sound_is_an_error(espeak: Espeak) -> None:
    with pytest.raises(UsageError, match="said nothing|made no sound"):
        say(espeak, "")


def test_phones_are_american_without_stress(espeak: Espeak) -> None:
    say(espeak, voice="gmw/en-GB-scotland")  # the last voice must not colour them
    assert espeak.phonemes("grass is green") == "g r aa s I z g r i: n".split()
    phones = espeak.phonemes("tell me the capital of germany, slowly")
    assert phones[:3] == ["t", "E", "l"]
    assert not set("".join(phones)) & set(",'%= _")
    assert len(phones) > len(espeak.phonemes("tell me the capital of germany"))


def test_a_missing_synthesiser_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UsageError, match=r"pip install aqaa\[demo\]"):
        Espeak()
