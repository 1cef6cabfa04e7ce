"""One door for vocoders of either size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aqaa.answer import DEMO
from aqaa.data.listen import listen
from aqaa.errors import UsageError
from aqaa.signals import VOCODER_RATE_HZ, CodePair
from aqaa.vocoder.token_vocoder import TokenVocoder
from aqaa.vocoder.vocoder import CLAMP, Vocoder
from aqaa.vocoder.voice import load_voice, tune
from tests.conftest import Chain
from tests.golden.make import hift, token_flow

SMALL = DEMO / "vocoder"


def test_each_folder_gives_its_kind(tmp_path: Path) -> None:
    TokenVocoder(token_flow(tokens=5120), hift()).save(tmp_path)
    assert isinstance(load_voice(tmp_path / "flow", tmp_path / "waveform"), TokenVocoder)
    small = load_voice(SMALL / "flow", SMALL / "waveform")
    assert isinstance(small, Vocoder)
    assert small.speak(CodePair([1, 2], [3, 4, 5])).rate_hz != VOCODER_RATE_HZ


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    TokenVocoder(token_flow(tokens=5120), hift()).save(tmp_path)
    with pytest.raises(UsageError, match="this head makes 160 samples of a frame"):
        load_voice(tmp_path / "flow", SMALL / "waveform")
    with pytest.raises(UsageError, match="a head for 22.05 kHz, .* a flow for 16 kHz"):
        load_voice(SMALL / "flow", tmp_path / "waveform")
    with pytest.raises(UsageError, match="holds a WaveformHead, not a FlowVocoder"):
        load_voice(SMALL / "waveform", SMALL / "waveform")


def test_a_voice_is_tuned_and_otherwise_left_as_it_is() -> None:
    codes, ways = CodePair([1, 2], [3, 4, 5]), {"steps": 2, "guidance": 0.3, "solver": "midpoint"}
    for voice in (
        load_voice(SMALL / "flow", SMALL / "waveform"),
        TokenVocoder(token_flow(tokens=5120), hift(), steps=3),
    ):
        plain, made = voice.speak(codes).samples, (voice.steps, voice.guidance, voice.solver)
        tune(voice)
        assert (voice.steps, voice.guidance, voice.solver) == made
        assert np.array_equal(voice.speak(codes).samples, plain)
        for name, value in ways.items():
            tune(voice, **{"steps": 4, name: value})  # type: ignore[arg-type]
            assert not np.array_equal(voice.speak(codes).samples, plain), name
        assert (voice.steps, voice.guidance, voice.solver) == (4, 0.3, "midpoint")
        for wrong, sentence in (
            ({"solver": "heun"}, "no solver is called heun: there are euler"),
            ({"steps": 0}, "steps=0: a flow takes at least one"),
            ({"steps": 3, "solver": "midpoint"}, "steps=3: the midpoint solver"),
            ({"steps": 4, "solver": "euler", "guidance": -1.0}, "guidance=-1.0: it is 0"),
        ):
            with pytest.raises(UsageError, match=sentence):
                tune(voice, **wrong)  # type: ignore[arg-type]
            tune(voice, steps=4, guidance=0.3, solver="midpoint")


def test_guidance_of_the_small_voice_is_the_flows() -> None:
    voice: Any = load_voice(SMALL / "flow", SMALL / "waveform")
    tune(voice, guidance=0.5)
    mel = voice.flow.sample(torch.tensor([[1, 2]]), torch.tensor([[3, 4, 5]]), guidance=0.5)
    alone = voice.head(mel)[0].clamp(-CLAMP, CLAMP).detach().numpy()
    assert np.array_equal(voice.speak(CodePair([1, 2], [3, 4, 5])).samples, alone)


def test_stored_codes_are_heard_by_the_full_size_voice(chain: Chain, tmp_path: Path) -> None:
    TokenVocoder(token_flow(tokens=5120), hift()).save(tmp_path)
    folders = {name: str(tmp_path / name) for name in ("flow", "waveform", "out")}
    listen(source=str(chain / "tokens"), count=1, **folders)
    assert len(list((tmp_path / "out").glob("*.wav"))) == 1
