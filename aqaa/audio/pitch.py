"""How high and how loud a voice is, frame by frame (YIN, de Cheveigne and Kawahara 2002).

Letters: T samples, F frames, N places of 40 ms, W samples of a window, L lags.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aqaa.signals import QUESTION_RATE_HZ, SEMANTIC_RATE_HZ

STEP_SAMPLES = int(QUESTION_RATE_HZ / SEMANTIC_RATE_HZ)
LEVEL_SAMPLES = 1024  # a level is measured over so many
FAINTEST = 1e-5  # RMS: nothing is quieter
LOWEST_HZ, HIGHEST_HZ = 60.0, 500.0
WINDOW_S = 0.035  # two periods of the lowest pitch
DIP = 0.35  # of the normalised difference: no lag falls below it where nothing is voiced
QUIET = 0.02  # of the loudest window: what is quieter has no pitch


def pitch(samples: Tensor, *, rate_hz: int, hop_samples: int) -> Tensor:
    """Pitch of one clip.

    Args:
        samples: (T,).
        rate_hz: of the samples.
        hop_samples: between frames; frame i is about the middle of its hop.

    Returns:
        Hz (F,), F = T // hop; 0 where nothing is voiced.
    """
    frames = len(samples) // hop_samples
    if not frames:
        return samples.new_zeros(0)
    window, lags = round(WINDOW_S * rate_hz), int(rate_hz / LOWEST_HZ) + 2
    difference, energy = _differences(samples, frames, hop_samples, window, lags)
    steps = torch.arange(1, lags, device=samples.device)
    # How much larger or smaller than the mean over shorter lags; 1 at a lag of nothing.
    normal = difference[:, 1:] * steps / difference[:, 1:].cumsum(1).clamp(min=1e-12)
    normal = torch.cat([torch.ones_like(normal[:, :1]), normal], 1)
    low, inner = normal < DIP, normal[:, 1:-1]
    valley = low[:, 1:-1] & (inner <= normal[:, 2:]) & (inner < normal[:, :-2])
    valley[:, : int(rate_hz / HIGHEST_HZ) - 1] = False
    lag = valley.to(torch.uint8).argmax(1) + 1  # the first, as multiples of a period dip too
    voiced = valley.any(1) & (energy > QUIET**2 * energy.max())
    before, here, after = (normal.gather(1, lag[:, None] + i)[:, 0] for i in (-1, 0, 1))
    bend = (before - 2 * here + after).clamp(min=1e-9)
    finer = lag + ((before - after) / (2 * bend)).clamp(-0.5, 0.5)
    return torch.where(voiced, rate_hz / finer, torch.zeros_like(finer))


class Voice(NamedTuple):
    """``f0_hz`` (N,), 0 where nothing is voiced; ``level`` (N,), natural logarithm of the RMS."""

    f0_hz: Tensor
    level: Tensor


def voice(samples: Tensor, places: int, *, step_samples: int = STEP_SAMPLES) -> Voice:
    """Pitch and level of (T,) at 16 kHz around the samples 0, 640, 1280 ... of so many places."""
    rest = max(0, places * step_samples + LEVEL_SAMPLES - len(samples))
    moved = F.pad(samples.float(), (step_samples // 2, rest))  # a hop's middle is a place now
    f0_hz = pitch(moved, rate_hz=QUESTION_RATE_HZ, hop_samples=step_samples)[:places]
    around = F.pad(samples.float(), (LEVEL_SAMPLES // 2, rest))
    rms = around.unfold(0, LEVEL_SAMPLES, step_samples)[:places].pow(2).mean(1).sqrt()
    return Voice(f0_hz, rms.clamp(min=FAINTEST).log())


def _differences(
    samples: Tensor, frames: int, hop: int, window: int, lags: int
) -> tuple[Tensor, Tensor]:
    """Squared difference between each window and itself later, (F, L), and its energy (F,)."""
    size = window + lags
    before = (size - hop) // 2
    padded = F.pad(samples.double(), (before, size))
    cut = padded.unfold(0, size, hop)[:frames]  # (F, W + L)
    n = 1 << (size + window - 1).bit_length()
    spectrum = torch.fft.rfft(cut, n)
    match = torch.fft.irfft(spectrum * torch.fft.rfft(cut[:, :window], n).conj(), n)[:, :lags]
    sums = F.pad(cut.pow(2).cumsum(1), (1, 0))
    energy = sums[:, window : window + lags] - sums[:, :lags]
    return (energy[:, :1] + energy - 2 * match).clamp(min=0).float(), energy[:, 0].float()
