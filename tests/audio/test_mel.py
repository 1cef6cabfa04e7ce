"""The log-mel against the formula written with loops, and its framing."""

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from aqaa.audio import mel
from aqaa.audio.mel import LOG_MEL_FLOOR, log_mel, mel_filters
from aqaa.audio.vocoder_mel import slaney_filters, vocoder_mel
from aqaa.audio.whisper_mel import _constants, whisper_mel


def reference(samples: np.ndarray) -> np.ndarray:
    """Log-mel (80, T // 160) of (T,), frame by frame and filter by filter."""
    padded = np.pad(samples.astype(np.float64), 240)
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / 640) for n in range(640)]
    mel_of = lambda hz: 2595 * math.log10(1 + hz / 700)  # noqa: E731
    corners_hz = [700 * (10 ** (mel_of(8000) * i / 81 / 2595) - 1) for i in range(82)]
    out = np.zeros((80, len(samples) // 160))
    for f in range(out.shape[1]):
        magnitude = np.abs(np.fft.rfft(padded[160 * f : 160 * f + 640] * window))
        for m in range(80):
            left, centre, right = corners_hz[m : m + 3]
            total = 0.0
            for k in range(321):
                hz = 25.0 * k
                rise, fall = (hz - left) / (centre - left), (right - hz) / (right - centre)
                total += max(0.0, min(rise, fall)) * magnitude[k]
            out[m, f] = math.log(max(total, 1e-3))
    return out


def test_log_mel_equals_the_loop() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 1000).astype(np.float32)
    ours = log_mel(torch.from_numpy(samples)[None])[0].numpy()
    assert ours.shape == (80, 6)
    np.testing.assert_allclose(ours, reference(samples), atol=2e-4)  # fp32 sums of 640 terms


@pytest.mark.parametrize(
    ("samples", "frames"), [(0, 0), (159, 0), (160, 1), (1919, 11), (1920, 12), (19_200, 120)]
)
def test_a_hop_of_samples_is_a_frame(samples: int, frames: int) -> None:
    assert log_mel(torch.zeros(3, samples)).shape == (3, 80, frames)


def test_silence_lies_on_the_floor() -> None:
    assert torch.equal(log_mel(torch.zeros(1, 1920)), torch.full((1, 80, 12), LOG_MEL_FLOOR))


def test_a_row_does_not_depend_on_its_batch() -> None:
    batch = torch.randn(3, 3840, generator=torch.Generator().manual_seed(0)) * 0.1
    torch.testing.assert_close(log_mel(batch)[1], log_mel(batch[1:2])[0], atol=1e-5, rtol=0)


def test_a_tone_is_loudest_in_the_filter_around_it() -> None:
    time_s = torch.arange(16_000) / 16_000
    loudest = log_mel(torch.sin(2 * math.pi * 1000 * time_s)[None])[0].mean(dim=1).argmax()
    assert mel_filters()[loudest].argmax() * 25 == pytest.approx(1000, abs=50)


def test_filters_do_not_depend_on_torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    torchaudio = pytest.importorskip("torchaudio")
    with_it = torchaudio.functional.melscale_fbanks(
        321, 0.0, 8000.0, 80, 16_000, norm=None, mel_scale="htk"
    ).T
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    torch.testing.assert_close(mel_filters(), with_it, atol=1e-6, rtol=0)
    assert mel._constants(torch.device("cpu"))[1].shape == (80, 321)


def test_every_filter_hears_something() -> None:
    assert (mel_filters().sum(dim=1) > 0).all()


@pytest.mark.parametrize("ear", [log_mel, vocoder_mel, whisper_mel])
def test_it_can_teach_after_it_was_only_listened_to(
    ear: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    for kept in (mel._constants, slaney_filters, _constants):
        kept.cache_clear()
    sound = torch.randn(1, 4000)
    one = sound[0] if ear is whisper_mel else sound
    with torch.inference_mode():
        ear(one)
    learnt = one.clone().requires_grad_()
    ear(learnt).sum().backward()
    assert learnt.grad is not None and bool(learnt.grad.isfinite().all())
