"""Filter banks against Kaldi's recipe in loops; counts against a stream that buffers frames."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from aqaa.audio.fbank import fbank, linguistic_frontend, stack_frames, stacked_frames
from aqaa.errors import UsageError

SOUND = 0.2 * torch.randn(12_000, generator=torch.Generator().manual_seed(0))


def slow_fbank(samples: Tensor) -> np.ndarray:
    """Kaldi's log filter banks, one window after another."""
    x = samples.double().numpy() * 2**15
    window = 0.54 - 0.46 * np.cos(2 * math.pi * np.arange(400) / 399)

    def mel(hz: float) -> float:
        return 1127 * math.log(1 + hz / 700)

    corners = np.linspace(mel(20), mel(8000), 82)
    rows = []
    for start in range(0, len(x) - 399, 160):
        frame = x[start : start + 400] - x[start : start + 400].mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * window, 512)) ** 2
        row = []
        for left, centre, right in zip(corners, corners[1:], corners[2:], strict=False):
            energy = 0.0
            for k in range(256):
                m = mel(k * 16000 / 512)
                if left < m < right:
                    rising, falling = (m - left) / (centre - left), (right - m) / (right - centre)
                    energy += min(rising, falling) * power[k]
            row.append(math.log(max(energy, float(np.finfo(np.float32).eps))))
        rows.append(row)
    return np.array(rows)


def streamed_count(samples: int) -> int:
    """Stacked frames of a stream: what each block of 3,840 samples and the last rest complete."""
    frames, emitted, heard = 0, 0, 0
    while heard < samples:
        block = min(3840, samples - heard)
        heard += block
        windows = max(0, 1 + (heard - 400) // 160) if heard >= 400 else 0
        fresh, frames = windows - frames, windows
        held = frames + 3 - 6 * emitted  # with the three that repeat the first
        if not fresh or held < 7:
            continue
        last = heard == samples and block < 3840
        emitted += -(-(held - 3) // 6) if last else (held - 7) // 6 + 1
    return emitted


def test_filter_banks_are_kaldis() -> None:
    found = fbank(SOUND[:2000])
    assert found.shape == (11, 80)
    np.testing.assert_allclose(found.numpy(), slow_fbank(SOUND[:2000]), rtol=0, atol=1e-3)
    silent = fbank(torch.zeros(400))
    assert silent.unique().tolist() == pytest.approx([math.log(np.finfo(np.float32).eps)])
    assert fbank(SOUND[:399]).shape == (0, 80)


def test_every_tail_length_gives_the_streams_count() -> None:
    for samples in [*range(0, 12_000, 20), 879, 880, 881, 3839, 3840, 4719, 4720]:
        assert stacked_frames(samples) == streamed_count(samples), samples


@pytest.mark.parametrize("samples", [0, 300, 879, 880, 2000, 3840, 4500, 4720, 9000, 11_520])
def test_seven_frames_are_stacked_every_six(samples: int) -> None:
    found = linguistic_frontend(SOUND[:samples])
    assert found.shape == (stacked_frames(samples), 560)
    frames = fbank(SOUND[:samples])
    for n, row in enumerate(found):
        for part in range(7):
            place = min(max(6 * n - 3 + part, 0), len(frames) - 1)
            assert torch.equal(row[80 * part : 80 * part + 80], frames[place])


def test_dither_is_noise_and_none_is_repeatable() -> None:
    plain = linguistic_frontend(SOUND)
    assert torch.equal(plain, linguistic_frontend(SOUND))
    assert not torch.equal(plain, linguistic_frontend(SOUND, dither=1.0))


def test_a_batch_is_refused() -> None:
    with pytest.raises(UsageError, match=r"one clip \(T,\) is needed"):
        linguistic_frontend(SOUND[None])


def test_a_block_in_the_middle_needs_no_opening() -> None:
    frames = torch.arange(25.0)[:, None].expand(25, 80)
    assert stack_frames(frames, 4, opening=False)[:, ::80].tolist() == [
        [6.0 * n + part for part in range(7)] for n in range(4)
    ]
