"""What an answer is worth: its words, its sound as a recogniser hears it, its length, its silence.

Letters: none; one answer at a time.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aqaa.errors import UsageError
from aqaa.evaluation.judge import Ear
from aqaa.evaluation.prosody import spoken_duration_s
from aqaa.evaluation.recognise import spoken_words
from aqaa.signals import CodePair, Waveform

Speak = Callable[[CodePair], Waveform]
Judge = Callable[[str, str], float]  # the expected text and the one written, to 0..1
OF_SOUND = ("heard", "agreement", "length", "silence")
NAMES = ("text", *OF_SOUND, "judge")


def check_names(weights: Mapping[str, float], *, sound: bool, judge: bool) -> None:
    """Refuse weights of scores that nobody takes."""
    for name in weights:
        if name not in NAMES:
            raise UsageError(f"score.{name} is none of {', '.join(NAMES)}")
        if name in OF_SOUND and not sound:
            raise UsageError(f"score.{name} hears the answer: give voice.flow and voice.waveform")
        if name == "judge" and not judge:
            raise UsageError("score.judge needs a judge: call pairs(judge=...) from Python")


def of_text(text: str, expected: str) -> dict[str, float]:
    """``text``: 1 for the expected text, else 0 (as Step-Audio's RLHF judges objective answers)."""
    return {"text": float(text == expected)}


def of_sound(
    sound: Waveform | None, text: str, expected: str, usual_s: float, ear: Ear
) -> dict[str, float]:
    """The scores of a spoken answer, each 1 at best and 0 at worst.

    ``heard``: 1 minus the word error of what is heard against the expected text; ``agreement``:
    whether that is what the model wrote; ``length``: how near the speech lasts to ``usual_s``;
    ``silence``: the share of the sound that is speech.
    """
    if sound is None:
        return dict.fromkeys(OF_SOUND, 0.0)
    samples = np.asarray(sound.samples)
    spoken_s = spoken_duration_s(samples, sound.rate_hz) or 0.0
    said = ear(samples)
    ratio = min(spoken_s, usual_s) / max(spoken_s, usual_s, 1e-9)
    return {
        "heard": max(0.0, 1 - word_error(spoken_words(expected), spoken_words(said))),
        "agreement": float(said == text != ""),
        "length": ratio,
        "silence": min(1.0, spoken_s / max(sound.duration_s, 1e-9)),
    }


def total(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted sum, by which answers are ordered."""
    return sum(weight * scores[name] for name, weight in weights.items())


def word_error(wanted: Sequence[str], found: Sequence[str]) -> float:
    """Words inserted, left out or replaced, over the words wanted (or over 1, for none)."""
    row = list(range(len(found) + 1))
    for number, word in enumerate(wanted, 1):
        above, row[0] = row[0], number
        for place, other in enumerate(found, 1):
            best = min(above + (word != other), row[place] + 1, row[place - 1] + 1)
            above, row[place] = row[place], best
    return row[-1] / max(len(wanted), 1)
