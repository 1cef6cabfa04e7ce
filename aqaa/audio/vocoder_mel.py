"""The log-mel of the full-size vocoder: 22.05 kHz, 80 Slaney mels to 8 kHz, a hop of 256.

Letters: B clips, T samples, F = T // 256 frames, N = 513 bins of the spectrum.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.signals import MEL_BINS, VOCODER_HOP_SAMPLES, VOCODER_RATE_HZ

FFT_SAMPLES = 1024
HIGHEST_HZ = 8000.0
MAGNITUDE_FLOOR, POWER_FLOOR = 1e-5, 1e-9
EDGE_SAMPLES = (FFT_SAMPLES - VOCODER_HOP_SAMPLES) // 2

# Slaney's scale: even steps up to 1 kHz, a fixed ratio a step above.
_LINEAR_HZ, _KNEE_HZ, _LOG_STEP = 200.0 / 3, 1000.0, math.log(6.4) / 27


def vocoder_mel(waveform: Tensor) -> Tensor:
    """Log-mel of a waveform.

    Args:
        waveform: (B, T) in -1..1 at 22.05 kHz; samples beyond are taken as they are.

    Returns:
        (B, 80, F), nothing below log(1e-5). An incomplete last hop has no frame of its own.

    Raises:
        UsageError: another shape, too few samples to reflect at the ends, NaN or infinity.
    """
    if waveform.dim() != 2 or not waveform.is_floating_point():
        shape = tuple(waveform.shape)
        raise UsageError(f"a float waveform (B, T) is needed, not {waveform.dtype} {shape}")
    if waveform.shape[1] <= EDGE_SAMPLES:
        raise UsageError(
            f"{waveform.shape[1]} samples are too few for a mel: it needs more than {EDGE_SAMPLES}"
        )
    if not bool(waveform.isfinite().all()):
        raise UsageError("the waveform holds NaN or infinity")
    padded = torch.nn.functional.pad(
        waveform.float()[:, None], (EDGE_SAMPLES, EDGE_SAMPLES), mode="reflect"
    )[:, 0]
    window = torch.hann_window(FFT_SAMPLES, device=waveform.device)
    spectrum = torch.stft(
        padded, FFT_SAMPLES, VOCODER_HOP_SAMPLES, window=window, center=False, return_complex=True
    )
    magnitude = (spectrum.real.pow(2) + spectrum.imag.pow(2) + POWER_FLOOR).sqrt()
    return (slaney_filters().to(magnitude) @ magnitude).clamp(min=MAGNITUDE_FLOOR).log()


@lru_cache(maxsize=1)
@torch.inference_mode(False)  # or a later backward pass could not use them
def slaney_filters() -> Tensor:
    """Triangles on Slaney's mel scale, each with an area of one Hz: (80, N)."""
    highest = (_KNEE_HZ / _LINEAR_HZ) + math.log(HIGHEST_HZ / _KNEE_HZ) / _LOG_STEP
    steps = torch.linspace(0, highest, MEL_BINS + 2, dtype=torch.float64)
    knee = _KNEE_HZ / _LINEAR_HZ
    corners_hz = torch.where(
        steps < knee, steps * _LINEAR_HZ, _KNEE_HZ * torch.exp((steps - knee) * _LOG_STEP)
    )
    bins_hz = torch.linspace(0, VOCODER_RATE_HZ / 2, FFT_SAMPLES // 2 + 1, dtype=torch.float64)
    left, centre, right = (corners_hz[i : i + MEL_BINS, None] for i in range(3))
    rising = (bins_hz - left) / (centre - left)
    falling = (right - bins_hz) / (right - centre)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (right - left)).float()
