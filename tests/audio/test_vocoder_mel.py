"""The vocoder's mel against sums over samples, and its filters against loops."""

import math

import pytest
import torch

from aqaa.audio import torchaudio_shim
from aqaa.audio.vocoder_mel import slaney_filters, vocoder_mel
from aqaa.errors import UsageError
from aqaa.signals import VOCODER_RATE_HZ


def to_hz(step: float) -> float:
    return step * 200 / 3 if step < 15 else 1000 * 6.4 ** ((step - 15) / 27)


def test_filters_against_a_loop() -> None:
    top = 15 + 27 * math.log(8) / math.log(6.4)
    corners = [to_hz(top * i / 81) for i in range(82)]
    assert corners[-1] == pytest.approx(8000)
    filters = slaney_filters()
    assert filters.shape == (80, 513)
    for m in range(80):
        left, centre, right = corners[m : m + 3]
        for n in range(0, 513, 7):
            hz = n * VOCODER_RATE_HZ / 1024
            height = min((hz - left) / (centre - left), (right - hz) / (right - centre))
            wanted = 2 / (right - left) * max(0.0, height)
            assert float(filters[m, n]) == pytest.approx(wanted, abs=1e-7)


def test_filters_equal_torchaudios() -> None:
    torchaudio_shim.ensure()
    functional = pytest.importorskip("torchaudio.functional")
    theirs = functional.melscale_fbanks(
        513, 0.0, 8000.0, 80, VOCODER_RATE_HZ, norm="slaney", mel_scale="slaney"
    )
    torch.testing.assert_close(slaney_filters(), theirs.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loudness", [1.0, 1e-4])  # so quiet that the least power counts
def test_a_frame_by_sums(loudness: float) -> None:
    sound = torch.rand(1, 1500, generator=torch.Generator().manual_seed(0)) - 0.5
    sound = loudness * sound
    found = vocoder_mel(sound)
    assert found.shape == (1, 80, 5)
    n, k = torch.arange(1024, dtype=torch.float64), torch.arange(513, dtype=torch.float64)
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * n / 1024)
    for frame in (0, 4):
        places = [256 * frame + i - 384 for i in range(1024)]
        folded = [-p if p < 0 else 2 * 1499 - p if p > 1499 else p for p in places]
        x = sound[0, folded].double() * hann
        angle = 2 * math.pi * n[:, None] * k / 1024
        power = (x @ torch.cos(angle)) ** 2 + (x @ torch.sin(angle)) ** 2
        magnitude = torch.sqrt(power + 1e-9)
        wanted = (slaney_filters().double() @ magnitude).clamp(min=1e-5).log()
        torch.testing.assert_close(found[0, :, frame].double(), wanted, rtol=0, atol=1e-4)


def test_silence_has_a_floor() -> None:
    found = vocoder_mel(torch.zeros(1, 1024))
    torch.testing.assert_close(found, torch.full((1, 80, 4), math.log(1e-5)))


@pytest.mark.parametrize(("samples", "frames"), [(385, 1), (511, 1), (512, 2), (22050, 86)])
def test_a_frame_for_each_whole_hop(samples: int, frames: int) -> None:
    assert vocoder_mel(torch.zeros(2, samples)).shape == (2, 80, frames)


@pytest.mark.parametrize(
    ("sound", "sentence"),
    [
        (torch.zeros(1000), "a float waveform"),
        (torch.zeros(1, 2, 1000), "a float waveform"),
        (torch.zeros(1, 1000, dtype=torch.int16), "torch.int16"),
        (torch.zeros(1, 0), "0 samples are too few"),
        (torch.zeros(1, 384), "384 samples are too few for a mel: it needs more than 384"),
        (torch.full((1, 1000), torch.nan), "holds NaN"),
        (torch.full((1, 1000), torch.inf), "or infinity"),
    ],
)
def test_bad_sound_is_one_sentence(sound: torch.Tensor, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        vocoder_mel(sound)
