"""Which phone is said when: forced alignment of known words (pocketsphinx, English, no download).

It knows nothing of our tokenizers, so that their codes can be held against it. Letters: T samples.
"""

import numpy as np

from aqaa.evaluation.recognise import PAD_S, hear, new_decoder, spoken_words
from aqaa.signals import QUESTION_RATE_HZ

FRAME_RATE_HZ = 100.0
_SILENCE = "SIL"
_FRAME_SAMPLES = QUESTION_RATE_HZ // 100
_PAD_FRAMES = round(PAD_S * FRAME_RATE_HZ)


class Aligner:
    """Finds the phones of known words in sound."""

    def __init__(self) -> None:
        """Raises ``UsageError`` where pocketsphinx is not installed."""
        self._decoder = new_decoder()

    def __call__(self, samples: np.ndarray, text: str) -> list[str | None]:
        """The ARPAbet phone of every 10 ms, None where nothing is said.

        Args:
            samples: float32 (T,) at 16 kHz.
            text: the words that are said.

        Returns:
            T // 160 of them; none at all where the dictionary lacks a word, or the words are not
            to be found.
        """
        words = spoken_words(text)
        if not words or any(self._decoder.lookup_word(word) is None for word in words):
            return []
        frames: list[str | None] = [None] * (len(samples) // _FRAME_SAMPLES)
        try:
            self._decoder.set_align_text(" ".join(words))
            hear(self._decoder, samples)
            self._decoder.set_alignment()  # the words are found: now their phones
            hear(self._decoder, samples)
        except RuntimeError:  # it found no way through these words
            return []
        for word in self._decoder.get_alignment() or ():
            for phone in word:
                first = phone.start - _PAD_FRAMES
                last = min(len(frames), first + phone.duration)
                for place in range(max(0, first), last if phone.name != _SILENCE else 0):
                    frames[place] = phone.name
        return frames
