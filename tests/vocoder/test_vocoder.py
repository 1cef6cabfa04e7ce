"""Codes in, sound out."""

from pathlib import Path

import numpy as np
import pytest

from aqaa.errors import UsageError
from aqaa.signals import GROUP_SAMPLES, QUESTION_RATE_HZ, CodePair
from aqaa.vocoder.vocoder import CLAMP, Vocoder
from tests.golden.make import vocoder

CODES = CodePair([1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11, 12])


def test_sound_is_as_long_as_the_groups() -> None:
    sound = vocoder().speak(CODES)
    assert len(sound.samples) == 2 * GROUP_SAMPLES
    assert sound.rate_hz == QUESTION_RATE_HZ
    assert sound.duration_s == 0.24
    assert sound.samples.dtype == np.float32
    assert 0 < np.abs(sound.samples).max() <= CLAMP


def test_the_tail_is_not_heard() -> None:
    whole = CodePair(CODES.linguistic[:4], CODES.semantic[:6])
    assert np.array_equal(vocoder().speak(CODES).samples, vocoder().speak(whole).samples)


def test_nothing_to_say_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="nothing to say"):
        vocoder().speak(CodePair([1], [2, 3, 4]))


def test_saved_and_loaded_it_sounds_the_same(tmp_path: Path) -> None:
    voice = vocoder()
    voice.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"flow", "waveform"}
    again = Vocoder.load(tmp_path)
    assert np.array_equal(again.speak(CODES).samples, voice.speak(CODES).samples)


def test_steps_are_those_asked_for() -> None:
    voice = vocoder()
    one = Vocoder(voice.flow, voice.head, steps=1).speak(CODES)
    assert not np.array_equal(one.samples, voice.speak(CODES).samples)
