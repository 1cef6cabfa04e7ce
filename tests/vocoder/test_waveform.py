"""The inverse STFT against torch's, and the head around it."""

from pathlib import Path

import pytest
import torch

from aqaa.errors import UsageError
from aqaa.vocoder.waveform import HOP_SAMPLES, WaveformHead, inverse_stft
from tests.golden.make import flow, waveform


def spectrum(frames: int, size: int = 640) -> torch.Tensor:
    return torch.randn(2, size // 2 + 1, frames, dtype=torch.complex64)


def test_it_equals_torchs_in_the_interior() -> None:
    window = torch.hann_window(640)
    frames = spectrum(20)
    frames[:, [0, -1]] = frames[:, [0, -1]].real.to(frames.dtype)
    ours = inverse_stft(frames, window, 160)
    theirs = torch.istft(frames, 640, 160, window=window)  # starts at the first frame's centre
    assert ours.shape == (2, 20 * 160)
    shift = 640 // 2 - (640 - 160) // 2
    inside = slice(480, theirs.shape[1] - 480)
    torch.testing.assert_close(
        ours[:, inside.start + shift : inside.stop + shift], theirs[:, inside], rtol=0, atol=1e-5
    )


def test_it_undoes_a_transform_with_the_same_framing() -> None:
    sound, window = torch.randn(1, 160 * 12), torch.hann_window(640)
    padded = torch.nn.functional.pad(sound, (240, 240))
    frames = padded.unfold(1, 640, 160) * window
    again = inverse_stft(torch.fft.rfft(frames).mT, window, 160)
    assert again.shape == sound.shape
    torch.testing.assert_close(again, sound, rtol=0, atol=1e-4)


def test_overlap_add_by_a_loop() -> None:
    window, frames = torch.hann_window(16), spectrum(5, 16)
    length = 4 * 4 + 16
    out, energy = torch.zeros(2, length), torch.zeros(length)
    for f in range(5):
        out[:, 4 * f : 4 * f + 16] += torch.fft.irfft(frames[:, :, f], 16) * window
        energy[4 * f : 4 * f + 16] += window**2
    expected = (out / energy.clamp(min=1e-8))[:, 6:-6]
    torch.testing.assert_close(inverse_stft(frames, window, 4), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("frames", [12, 36])
@torch.no_grad()
def test_the_waveform_is_as_long_as_the_mel(frames: int) -> None:
    samples = waveform()(torch.randn(2, 80, frames))
    assert samples.shape == (2, frames * HOP_SAMPLES)
    assert samples.isfinite().all()


@torch.no_grad()
def test_a_wild_mel_stays_finite() -> None:
    assert waveform()(torch.full((1, 80, 12), 300.0)).isfinite().all()


def test_every_parameter_learns() -> None:
    head = waveform().train()
    head(torch.randn(1, 80, 12)).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


@torch.no_grad()
def test_saved_and_loaded_it_sounds_the_same(tmp_path: Path) -> None:
    head, mel = waveform(), torch.randn(1, 80, 12)
    head.save(tmp_path)
    assert torch.equal(WaveformHead.load(tmp_path)(mel), head(mel))
    head.save(tmp_path, dtype=torch.float16)
    torch.testing.assert_close(WaveformHead.load(tmp_path)(mel), head(mel), rtol=0, atol=0.05)


def test_another_organ_is_refused(tmp_path: Path) -> None:
    flow().save(tmp_path)
    with pytest.raises(UsageError, match="holds a FlowVocoder, not a WaveformHead"):
        WaveformHead.load(tmp_path)
