"""The judge's ear: which sentence of a closed list was spoken (pocketsphinx, English, no download).

A closed list always hears something (chance is one over its length), so read its verdicts as shares
over many clips and beside the share it reaches on the original clips. Letters: T samples.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from aqaa.errors import UsageError
from aqaa.signals import QUESTION_RATE_HZ

PAD_S = 0.25  # the decoder needs silence around the words to settle
NOISE_RMS = 1e-3  # digital silence breaks its noise estimate
FULL_SCALE = 30_000  # 16-bit, with headroom


def spoken_words(text: str) -> list[str]:
    """The words of ``text`` as a dictionary knows them: lower case, no punctuation."""
    return re.findall(r"[\w']+", text.lower())


class Recogniser:
    """Hears which of ``answers`` was said.

    Args:
        answers: the whole sentences that may be heard.
        pronunciations: word -> ARPAbet phones, for words the dictionary lacks (``"K W AE K"``).
    """

    def __init__(
        self, answers: Iterable[str], pronunciations: Mapping[str, str] | None = None
    ) -> None:
        self._answer_of = _by_spoken_form(answers)
        self._decoder = new_decoder()
        known = pronunciations or {}
        words = sorted({word for form in self._answer_of for word in form.split()})
        missing = [word for word in words if self._decoder.lookup_word(word) is None]
        unknown = [word for word in missing if word not in known]
        if unknown:
            raise UsageError(
                f"the recogniser has no pronunciation for {', '.join(unknown)}: "
                "pass ARPAbet phones for each in `pronunciations`, or leave these answers out"
            )
        for word in missing:
            try:
                self._decoder.add_word(word, known[word], False)
            except RuntimeError:
                raise UsageError(
                    f"pronunciation {known[word]!r} of {word!r} is not ARPAbet phones"
                ) from None
        sentences = " | ".join(sorted(self._answer_of))
        grammar = f"#JSGF V1.0; grammar answers; public <answer> = {sentences};"
        self._decoder.add_jsgf_string("answers", grammar)
        self._decoder.activate_search("answers")

    def __call__(self, samples: np.ndarray) -> str:
        """The answer heard in ``samples`` float32 (T,) at 16 kHz; '' when nothing was."""
        hear(self._decoder, samples)
        heard = self._decoder.hyp()
        return self._answer_of.get(heard.hypstr, "") if heard else ""


def _by_spoken_form(answers: Iterable[str]) -> dict[str, str]:
    forms: dict[str, str] = {}
    for answer in answers:
        form = " ".join(spoken_words(answer))
        if not form:
            raise UsageError(f"answer {answer!r} has no word that could be heard")
        if forms.setdefault(form, answer) != answer:
            raise UsageError(
                f"answers {forms[form]!r} and {answer!r} sound the same: keep one spelling"
            )
    if not forms:
        raise UsageError(
            "the recogniser needs at least one answer to listen for; it was given none"
        )
    return forms


def new_decoder() -> Any:
    """A pocketsphinx decoder of its bundled English model, without a grammar.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from pocketsphinx import Decoder
    except ImportError:
        raise UsageError(
            "judging speech needs pocketsphinx, which is not installed: pip install aqaa[demo]"
        ) from None
    return Decoder(lm=None, loglevel="FATAL", samprate=QUESTION_RATE_HZ)


def hear(decoder: Any, samples: np.ndarray) -> None:
    """Let a decoder hear float32 (T,) at 16 kHz, with silence around it."""
    pad = round(PAD_S * QUESTION_RATE_HZ)
    padded = np.pad(np.asarray(samples, np.float32), (pad, pad))
    # The same noise for every clip, so that a verdict never depends on what was heard before.
    noise = np.random.default_rng(0).standard_normal(len(padded)) * NOISE_RMS
    pcm = (np.clip(padded + noise, -1.0, 1.0) * FULL_SCALE).astype(np.int16)
    decoder.start_utt()
    decoder.process_raw(pcm.tobytes(), full_utt=True)
    decoder.end_utt()
