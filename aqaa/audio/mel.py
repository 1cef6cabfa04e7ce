"""The log-mel that tokenizers and vocoder work on: 100 frames a second, 80 bins, from 16 kHz.

Letters: B batch, T samples, F frames, N bins of the spectrum (321).
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from aqaa.audio import torchaudio_shim
from aqaa.signals import GROUP_FRAMES, MEL_BINS, MEL_RATE_HZ, QUESTION_RATE_HZ

torchaudio_shim.ensure()

FFT_SAMPLES = 640
HOP_SAMPLES = QUESTION_RATE_HZ // MEL_RATE_HZ
MAGNITUDE_FLOOR = 1e-3
LOG_MEL_FLOOR = math.log(MAGNITUDE_FLOOR)
_LOWEST_HZ, _HIGHEST_HZ = 0.0, QUESTION_RATE_HZ / 2


def log_mel(samples: Tensor) -> Tensor:
    """Natural logarithm of the mel magnitudes.

    Args:
        samples: (B, T) mono sound at 16 kHz.

    Returns:
        (B, 80, T // 160), nothing below ``LOG_MEL_FLOOR``. Frame f is centred on the middle of
        samples 160 f .. 160 f + 159, so whole groups of samples give whole groups of frames.
    """
    if samples.shape[-1] < HOP_SAMPLES:
        return samples.new_zeros(samples.shape[0], MEL_BINS, 0)
    window, filters = _constants(samples.device)
    side = (FFT_SAMPLES - HOP_SAMPLES) // 2
    padded = torch.nn.functional.pad(samples.float(), (side, side))
    spectrum = torch.stft(
        padded, FFT_SAMPLES, HOP_SAMPLES, window=window, center=False, return_complex=True
    )
    return torch.log(torch.clamp(filters @ spectrum.abs(), min=MAGNITUDE_FLOOR))


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # or a later backward pass could not use them
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Hann window (640,) and mel filters (80, N) on ``device``."""
    return torch.hann_window(FFT_SAMPLES, device=device), mel_filters().to(device)


def mel_filters() -> Tensor:
    """Triangular filters (80, N), evenly spaced on the HTK mel scale, each with height 1."""
    bins = FFT_SAMPLES // 2 + 1
    try:
        from torchaudio.functional import melscale_fbanks
    except (ImportError, OSError):
        return _filters_by_hand(bins)
    filters: Tensor = melscale_fbanks(
        bins, _LOWEST_HZ, _HIGHEST_HZ, MEL_BINS, QUESTION_RATE_HZ, norm=None, mel_scale="htk"
    )
    return filters.T.contiguous()


def _filters_by_hand(bins: int) -> Tensor:
    """The same filters without torchaudio, (80, bins)."""
    lowest, highest = (2595.0 * math.log10(1.0 + f / 700.0) for f in (_LOWEST_HZ, _HIGHEST_HZ))
    corners_mel = torch.linspace(lowest, highest, MEL_BINS + 2)
    corners_hz = 700.0 * (10.0 ** (corners_mel / 2595.0) - 1.0)
    frequencies_hz = torch.linspace(0.0, QUESTION_RATE_HZ / 2, bins)
    left, centre, right = (corners_hz[i : i + MEL_BINS, None] for i in range(3))
    rising = (frequencies_hz - left) / (centre - left)
    falling = (right - frequencies_hz) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0.0)


def pad_mels(mels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack log-mels (80, F_i) as (B, 80, F) with a mask (B, F); F is whole groups."""
    frames = -(-max(mel.shape[1] for mel in mels) // GROUP_FRAMES) * GROUP_FRAMES
    batch = torch.full((len(mels), mels[0].shape[0], frames), LOG_MEL_FLOOR)
    mask = torch.zeros(len(mels), frames)
    for i, mel in enumerate(mels):
        batch[i, :, : mel.shape[1]] = mel
        mask[i, : mel.shape[1]] = 1
    return batch, mask
