"""Scores of answers, by hand."""

import numpy as np
import pytest

from aqaa.errors import UsageError
from aqaa.evaluation import scores
from aqaa.signals import QUESTION_RATE_HZ, Waveform


def tone(spoken_s: float, silent_s: float) -> Waveform:
    times = np.arange(round(spoken_s * QUESTION_RATE_HZ)) / QUESTION_RATE_HZ
    sound = 0.3 * np.sin(2 * np.pi * 220 * times)
    silence = np.zeros(round(silent_s * QUESTION_RATE_HZ))
    return Waveform(np.concatenate([sound, silence]).astype(np.float32), QUESTION_RATE_HZ)


@pytest.mark.parametrize(
    ("wanted", "found", "error"),
    [
        ("a b c d", "a b c d", 0),
        ("a b c d", "a x c", 0.5),
        ("a b", "a z b", 0.5),
        ("a", "x y z", 3),
        ("", "x y", 2),
        ("a b", "", 1),
        ("a b", "b a", 1),
    ],
)
def test_word_error_counts_edits(wanted: str, found: str, error: float) -> None:
    assert scores.word_error(wanted.split(), found.split()) == error


def test_a_spoken_answer_is_scored_by_what_is_heard() -> None:
    found = scores.of_sound(tone(1.0, 1.0), "grass is", "grass is green", 2.0, lambda _: "grass is")
    assert found["heard"] == pytest.approx(2 / 3) and found["agreement"] == 1.0
    assert found["length"] == pytest.approx(0.5, abs=0.06)
    assert found["silence"] == pytest.approx(0.5, abs=0.06)
    other = scores.of_sound(tone(2.0, 0.0), "grass is", "grass is green", 2.0, lambda _: "sky")
    assert (other["heard"], other["agreement"]) == (0.0, 0.0)
    assert other["length"] > 0.9 and other["silence"] > 0.9
    silent = scores.of_sound(None, "", "grass is green", 2.0, lambda _: "")
    assert silent == dict.fromkeys(scores.OF_SOUND, 0.0)
    assert scores.of_sound(tone(1, 0), "", "a", 1.0, lambda _: "")["agreement"] == 0.0


def test_the_total_is_the_weighted_sum() -> None:
    found = {"text": 1.0, "heard": 0.5, "length": 0.25}
    assert scores.total(found, {"text": 2.0, "heard": 1.0}) == 2.5
    with pytest.raises(KeyError):
        scores.total(found, {"judge": 1.0})


def test_weights_of_scores_that_nobody_takes_are_refused() -> None:
    scores.check_names({"text": 1, "heard": 1, "judge": 1}, sound=True, judge=True)
    for weights, sentence in (
        ({"texts": 1.0}, "score.texts is none of text, heard"),
        ({"heard": 1.0}, "give voice.flow and voice.waveform"),
        ({"judge": 1.0}, "score.judge needs a judge"),
    ):
        with pytest.raises(UsageError, match=sentence):
            scores.check_names(weights, sound=False, judge=False)
