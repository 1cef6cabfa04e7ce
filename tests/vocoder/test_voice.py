"""One door for vocoders of either size."""

from pathlib import Path

import pytest

from aqaa.answer import DEMO
from aqaa.data.listen import listen
from aqaa.errors import UsageError
from aqaa.signals import VOCODER_RATE_HZ, CodePair
from aqaa.vocoder.token_vocoder import TokenVocoder
from aqaa.vocoder.vocoder import Vocoder
from aqaa.vocoder.voice import load_voice
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


def test_stored_codes_are_heard_by_the_full_size_voice(chain: Chain, tmp_path: Path) -> None:
    TokenVocoder(token_flow(tokens=5120), hift()).save(tmp_path)
    folders = {name: str(tmp_path / name) for name in ("flow", "waveform", "out")}
    listen(source=str(chain / "tokens"), count=1, **folders)
    assert len(list((tmp_path / "out").glob("*.wav"))) == 1
