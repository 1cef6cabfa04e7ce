"""Codes in, sound at the vocoder's rate out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from aqaa.errors import UsageError
from aqaa.signals import VOCODER_RATE_HZ, CodePair
from aqaa.vocabulary import interleaved
from aqaa.vocoder.token_vocoder import TokenVocoder
from tests.golden.make import hift, token_flow

CODES = CodePair([1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11, 12])


def voice() -> TokenVocoder:
    return TokenVocoder(token_flow(tokens=5120), hift(), steps=2)


def test_sound_is_as_long_as_the_tokens() -> None:
    vocoder = voice()
    sound = vocoder.speak(CODES)
    assert sound.rate_hz == VOCODER_RATE_HZ
    assert len(sound.samples) == 256 * vocoder.flow.frames(10) == 5120
    assert 0 < np.abs(sound.samples).max() <= 0.99
    assert np.array_equal(sound.samples, vocoder.speak(CODES).samples)
    assert not np.array_equal(sound.samples, vocoder.speak(CODES, seed=1).samples)


def test_it_says_the_interleaved_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    vocoder, seen = voice(), []
    sample = vocoder.flow.sample

    def watched(tokens: torch.Tensor, **given: object) -> torch.Tensor:
        seen.append((tokens, given))
        return sample(tokens, **given)

    monkeypatch.setattr(vocoder.flow, "sample", watched)
    mel, speaker = torch.randn(1, 10, 9), torch.randn(1, 5)
    vocoder.speak(CODES, prompt=CODES, prompt_mel=mel, speaker=speaker)
    tokens, given = seen[0]
    assert tokens.tolist() == given["prompt_tokens"].tolist() == [interleaved(CODES)]
    assert given["prompt_mel"] is mel and given["speaker"] is speaker
    assert (given["steps"], given["guidance"]) == (2, 0.7)


def test_nothing_to_say_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="nothing to say"):
        voice().speak(CodePair([1], [2, 3, 4]))


def test_saved_and_loaded_it_sounds_the_same(tmp_path: Path) -> None:
    vocoder = voice()
    vocoder.save(tmp_path)
    loaded = TokenVocoder.load(tmp_path)
    loaded.steps = 2
    assert np.array_equal(loaded.speak(CODES).samples, vocoder.speak(CODES).samples)
