"""How high and how loud a voice is, 25 times a second.

Pitch is the best peak of a window's autocorrelation over that of the window itself (Boersma 1993).
Letters: T samples, N places of 40 ms, S lags, B bins of the spectrum.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aqaa.signals import QUESTION_RATE_HZ, SEMANTIC_RATE_HZ

STEP_SAMPLES = int(QUESTION_RATE_HZ / SEMANTIC_RATE_HZ)
WINDOW_SAMPLES = 1024
LOWEST_HZ, HIGHEST_HZ = 60.0, 500.0
_VOICED = 0.5  # of the whole power must return after a period
_SHORTER = 0.02  # a lag an octave longer must be better by this
_QUIET = 0.02  # of the loudest window's level: below it nothing is voiced
_NOTHING = 1e-5


class Voice(NamedTuple):
    """``f0_hz`` (N,), 0 where nothing is voiced; ``level`` (N,), natural logarithm of the RMS."""

    f0_hz: Tensor
    level: Tensor


def voice(samples: Tensor, places: int, *, step_samples: int = STEP_SAMPLES) -> Voice:
    """Pitch and level of (T,) at 16 kHz around the samples 0, 640, 1280 ... of so many places."""
    side = WINDOW_SAMPLES // 2
    needed = (places - 1) * step_samples + WINDOW_SAMPLES
    padded = F.pad(samples.float(), (side, max(0, needed - side - len(samples))))
    frames = padded.unfold(0, WINDOW_SAMPLES, step_samples)[:places]
    rms = frames.pow(2).mean(1).sqrt()
    window, own = _window()
    frames = (frames - frames.mean(1, keepdim=True)) * window
    power = torch.fft.rfft(frames, 2 * WINDOW_SAMPLES).abs().square()
    returned = torch.fft.irfft(power)[:, :side]
    returned = returned / returned[:, :1].clamp(min=_NOTHING**2) / own
    lag, strength = _best_lag(returned)
    voiced = (strength > _VOICED) & (rms > _QUIET * rms.max()) & (rms > _NOTHING)
    return Voice(torch.where(voiced, QUESTION_RATE_HZ / lag, 0.0), rms.clamp(min=_NOTHING).log())


def _best_lag(returned: Tensor) -> tuple[Tensor, Tensor]:
    """Lag (N,) in samples and height (N,) of the best peak of autocorrelations (N, S)."""
    first, last = int(QUESTION_RATE_HZ / HIGHEST_HZ), int(QUESTION_RATE_HZ / LOWEST_HZ)
    lags = torch.arange(first, last + 1)
    octaves = torch.log2(lags / first)
    here = returned[:, first : last + 1]
    before, after = returned[:, first - 1 : last], returned[:, first + 1 : last + 2]
    peak = (here >= before) & (here >= after)
    best = (here - _SHORTER * octaves).masked_fill(~peak, -torch.inf).argmax(1, keepdim=True)
    y0, y1, y2 = (x.gather(1, best)[:, 0] for x in (before, here, after))
    bend = (y0 - 2 * y1 + y2).clamp(max=-_NOTHING)
    shift = ((y0 - y2) / (2 * bend)).clamp(-0.5, 0.5)
    return lags[best[:, 0]] + shift, y1.masked_fill(~peak.any(1), 0.0)


@lru_cache(maxsize=1)
def _window() -> tuple[Tensor, Tensor]:
    """The Hann window and its autocorrelation over the lags that are looked at, from one down."""
    window = torch.hann_window(WINDOW_SAMPLES)
    power = torch.fft.rfft(window, 2 * WINDOW_SAMPLES).abs().square()
    own = torch.fft.irfft(power)[: WINDOW_SAMPLES // 2]
    return window, own / own[0]
