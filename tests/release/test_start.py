"""A training goes on from released weights, and what it gives goes back to the released format."""

from pathlib import Path

import pytest
import torch

from aqaa.errors import UsageError
from aqaa.release import load_vocoder, save_vocoder
from aqaa.release.start import start_from
from aqaa.vocoder.hift import Hift
from aqaa.vocoder.token_flow import TokenFlow
from aqaa.vocoder.token_vocoder import TokenVocoder
from aqaa.vocoder.waveform import WaveformHead
from tests.release.test_vocoder import YAML, tiny_flow, tiny_head


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A released vocoder, tiny."""
    found = tmp_path / "released"
    found.mkdir()
    (found / "cosyvoice.yaml").write_text(YAML)
    torch.save(tiny_flow(), found / "flow.pt")
    torch.save(tiny_head(), found / "hift.pt")
    return found


def test_there_and_back(folder: Path, tmp_path: Path) -> None:
    origin = load_vocoder(folder)
    flow = TokenFlow(**origin.flow.settings)
    head = Hift(**origin.head.settings)  # type: ignore[arg-type]
    for part, wanted in ((flow, tiny_flow()), (head, tiny_head())):
        start_from(part, folder)
        assert all(torch.equal(value, wanted[name]) for name, value in part.state_dict().items())
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.add_(0.01)  # a training
    flow.save(tmp_path / "flow")
    head.save(tmp_path / "waveform")
    save_vocoder(TokenVocoder.load(tmp_path), tmp_path / "out", like=folder)
    again = load_vocoder(tmp_path / "out")
    for part, found in ((flow, again.flow), (head, again.head)):
        state = found.state_dict()
        assert all(torch.equal(state[name], v) for name, v in part.state_dict().items())


def test_a_head_of_another_kind_has_no_released_weights_nor_format(
    folder: Path, tmp_path: Path
) -> None:
    light = WaveformHead(channels=8, inner=16, blocks=1, fft_size=1024, hop_samples=256)
    with pytest.raises(UsageError, match="a released vocoder, which has no WaveformHead"):
        start_from(light, folder)
    voice = TokenVocoder(load_vocoder(folder).flow, light)
    with pytest.raises(UsageError, match="a WaveformHead has no released format"):
        save_vocoder(voice, tmp_path / "out", like=folder)
