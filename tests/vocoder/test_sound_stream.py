"""A head on a growing mel gives the samples of the whole one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aqaa.vocoder.hift import Hift
from aqaa.vocoder.sound_stream import SoundStream
from aqaa.vocoder.waveform import WaveformHead
from tests.golden.make import hift, randomise


def released() -> Hift:
    """The released head in everything that decides how far it hears; narrow."""
    return randomise(Hift(channels=16, pitch_channels=8))  # type: ignore[return-value]


def vocos() -> WaveformHead:
    head = WaveformHead(channels=8, inner=16, blocks=8, fft_size=1024, hop_samples=256)
    return randomise(head)  # type: ignore[return-value]


HEADS = {"hift": hift, "released": released, "vocos": vocos}


def chance() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def mel(head: Any, frames: int = 90) -> torch.Tensor:
    bins = head.mel_bins if isinstance(head, Hift) else 80
    return torch.randn(1, bins, frames, generator=torch.Generator().manual_seed(1)) - 3


@torch.no_grad()
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("cut", [1, 31, 90])
def test_it_equals_the_whole(kind: str, cut: int) -> None:
    head: Any = HEADS[kind]()
    given = mel(head)
    sounds = SoundStream(head, generator=chance())
    found = [sounds.push(given[:, :, i : i + cut]) for i in range(0, 90, cut)]
    found.append(sounds.push(given[:, :, :0], last=True))
    whole = head(given, chance())[0] if isinstance(head, Hift) else head(given)[0]
    assert whole.std() > 1e-3
    torch.testing.assert_close(torch.cat(found), whole, rtol=0, atol=1e-5)
    if cut == 1:  # as soon as what it reaches is there, and a bounded part is kept
        wait = 90 - sum(map(len, found[:-1])) // 256
        pitch = head.f0_predictor.reach_frames if isinstance(head, Hift) else 0
        assert wait == head.reach_frames + pitch
        assert sounds._mel.shape[2] <= 2 * (head.reach_frames + pitch) + 1


@torch.no_grad()
@pytest.mark.parametrize("make", [released, vocos])
def test_a_head_hears_no_further_than_it_says(make: Callable[[], Any]) -> None:
    head = make()
    given = mel(head)
    other = given.clone()
    other[:, :, 45] += 1
    if isinstance(head, Hift):
        source = torch.randn(1, 1, 90 * 256, generator=chance())
        changed = source.clone()
        changed[:, :, 45 * 256 : 46 * 256] += 1
        found = head.decode(other, changed) - head.decode(given, source)
    else:
        found = head(other) - head(given)
    touched = found[0].abs().view(90, 256).amax(1).nonzero()[:, 0]
    reach = head.reach_frames
    assert int(touched.min()) >= 45 - reach and int(touched.max()) <= 45 + reach
    assert int(touched.max()) >= 45 + 0.6 * reach  # the far end may be less than a float's last bit


def test_a_clip_of_nothing_is_no_samples() -> None:
    head = vocos()
    sounds = SoundStream(head, generator=chance())
    assert not len(sounds.push(torch.zeros(1, 80, 0), last=True))
