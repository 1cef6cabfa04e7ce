import sys

import numpy as np
import pytest

from aqaa.errors import UsageError
from aqaa.evaluation.recognise import Recogniser, spoken_words

ANSWERS = ["grass is green", "the opposite of hot is cold", "after monday comes tuesday"]


@pytest.fixture
def say():
    pytest.importorskip("pocketsphinx")
    pytest.importorskip("espeakng_loader")
    from aqaa.data.espeak import Espeak

    espeak = Espeak()
    return lambda text: espeak.say(text, voice="en-us", rate_wpm=160, pitch=50)


def test_hears_each_of_three_answers_twice_the_same(say):
    recogniser = Recogniser(ANSWERS)
    clips = [say(answer) for answer in ANSWERS]
    assert [recogniser(clip) for clip in clips] == ANSWERS
    assert [recogniser(clip) for clip in clips] == ANSWERS


def test_gives_back_the_answer_as_it_was_written(say):
    recogniser = Recogniser(["Grass is green!", *ANSWERS[1:]])
    assert recogniser(say("grass is green")) == "Grass is green!"


def test_hears_nothing_in_silence_and_in_no_samples():
    pytest.importorskip("pocketsphinx")
    recogniser = Recogniser(ANSWERS)
    assert recogniser(np.zeros(0, np.float32)) == ""
    assert recogniser(np.zeros(400, np.float32)) == ""


def test_a_word_outside_the_dictionary_needs_a_pronunciation(say):
    strange = [*ANSWERS, "a snorflit says blimpuq"]
    with pytest.raises(UsageError, match="no pronunciation for blimpuq, snorflit:"):
        Recogniser(strange)
    with pytest.raises(UsageError, match="for blimpuq:"):
        Recogniser(strange, {"snorflit": "S N AO R F L IH T"})
    known = {"snorflit": "S N AO R F L IH T", "blimpuq": "B L IH M P UW K"}
    assert Recogniser(strange, known)(say("a snorflit says blimpook")) == strange[-1]


def test_phones_that_do_not_exist_are_refused():
    pytest.importorskip("pocketsphinx")
    with pytest.raises(UsageError, match="'Q Q' of 'snorflit'"):
        Recogniser(["a snorflit"], {"snorflit": "Q Q"})


@pytest.mark.parametrize(
    ("answers", "words"),
    [([], "at least one answer"), (["..."], "no word"), (["a cat", "A cat."], "sound the same")],
)
def test_a_list_that_cannot_be_told_apart_is_refused(answers, words):
    with pytest.raises(UsageError, match=words):
        Recogniser(answers)


def test_says_how_to_install_a_missing_recogniser(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(UsageError, match=r"pip install aqaa\[demo\]"):
        Recogniser(ANSWERS)


def test_words_are_spoken_forms():
    assert spoken_words("It's 5 o'clock, Tom.") == ["it's", "5", "o'clock", "tom"]
