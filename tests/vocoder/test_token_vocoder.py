"""Codes in, sound at the vocoder's rate out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from aqaa.errors import UsageError
from aqaa.signals import VOCODER_RATE_HZ, CodePair
from aqaa.vocabulary import interleaved
from aqaa.vocoder.mel_stream import Pace
from aqaa.vocoder.token_flow import TokenFlow
from aqaa.vocoder.token_vocoder import TokenVocoder
from aqaa.vocoder.waveform import WaveformHead
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


def test_a_stream_is_the_same_however_codes_come() -> None:
    vocoder, ways = voice(), []
    codes = CodePair(list(range(18)), list(range(27)))
    for cut in (1, 2, 5):
        stream, found = vocoder.stream(seed=4, pace=Pace(1, 1, 1)), []
        for i in range(0, 9, cut):
            two, three = slice(2 * i, 2 * i + 2 * cut), slice(3 * i, 3 * i + 3 * cut)
            found.append(stream.push(CodePair(codes.linguistic[two], codes.semantic[three])))
        found.append(stream.finish())
        assert all(sound.rate_hz == VOCODER_RATE_HZ for sound in found)
        ways.append(np.concatenate([sound.samples for sound in found]))
    assert len(ways[0]) == 256 * vocoder.flow.frames(45)
    for way in ways[1:]:
        assert np.abs(way - ways[0]).max() < 1e-5


def test_a_stream_that_hears_all_is_the_whole() -> None:
    vocoder = TokenVocoder(token_flow(tokens=5120), hift(), steps=2)
    codes = CodePair([1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11, 12])
    stream = vocoder.stream(pace=Pace(chunk_groups=9))
    parts = [stream.push(CodePair(codes.linguistic[:3], codes.semantic[:1]))]
    parts.append(stream.push(CodePair(codes.linguistic[3:], codes.semantic[1:])))
    parts.append(stream.finish())
    found = np.concatenate([sound.samples for sound in parts])
    assert np.abs(found - vocoder.speak(codes).samples).max() < 1e-5


def test_either_head_speaks_and_comes_back(tmp_path: Path) -> None:
    light = WaveformHead(channels=8, inner=16, blocks=1, fft_size=1024, hop_samples=256)
    flow = TokenFlow(tokens=5120, encoder={"code_width": 8, "width": 8, "heads": 2, "layers": 1},
                     estimator={"channels": [8, 8], "blocks": 1, "middle": 1})  # fmt: skip
    vocoder = TokenVocoder(flow, light, steps=2)
    vocoder.save(tmp_path)
    loaded = TokenVocoder.load(tmp_path)
    loaded.steps = 2
    said = vocoder.speak(CODES).samples
    assert len(said) == 5120 and np.array_equal(loaded.speak(CODES).samples, said)
    with pytest.raises(UsageError, match="this head makes 160 samples of a frame"):
        TokenVocoder(flow, WaveformHead(channels=8, inner=16, blocks=1))


def test_it_works_where_its_networks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that mixes with no other, as a GPU does not; checks that look at values stand
    aside, and so does the one operation that this device lacks."""
    vocoder, seen = voice(), []
    assert vocoder.device == torch.device("cpu")

    def istft(spectrum: torch.Tensor, size: int, hop: int, *, window: torch.Tensor) -> object:
        return window.new_zeros(len(spectrum), hop * (spectrum.shape[-1] - 1))

    monkeypatch.setattr(torch, "istft", istft)
    monkeypatch.setattr("aqaa.vocoder.token_flow._check", lambda *value: None)
    monkeypatch.setattr(TokenFlow, "_check_tokens", lambda *tokens: None)
    monkeypatch.setattr("aqaa.vocoder.hift.Hift._check", lambda *value: None)
    monkeypatch.setattr("aqaa.vocoder.token_vocoder._sound", seen.append)
    vocoder.to("meta").speak(
        CODES, prompt=CODES, prompt_mel=torch.randn(1, 10, 9), speaker=torch.randn(1, 5)
    )
    stream = vocoder.stream(pace=Pace(1, 1, 1), speaker=torch.randn(1, 5))
    stream.push(CodePair(list(range(18)), list(range(27))))
    stream.finish()
    assert vocoder.device.type == "meta" and len(seen) == 3
    assert all(samples.device.type == "meta" and len(samples) for samples in seen)
