"""Multi-resolution STFT distance of two waveforms (Parallel WaveGAN).

Letters: B clips, T samples.
"""

import torch
from torch import Tensor

_FLOOR = 1e-5
_LOG_FLOOR = 1e-3


def magnitude(samples: Tensor, size: int) -> Tensor:
    """(B, T) -> (B, size // 2 + 1, frames), a quarter of ``size`` as hop."""
    window = torch.hann_window(size, device=samples.device)
    spectrum = torch.stft(
        samples, size, size // 4, window=window, return_complex=True, pad_mode="constant"
    )
    return spectrum.abs().clamp(min=_FLOOR)


def multi_resolution(samples: Tensor, target: Tensor, sizes: list[int]) -> Tensor:
    """Sum over ``sizes`` of spectral convergence plus half the mean log-magnitude distance."""
    total = samples.new_zeros(())
    for size in sizes:
        a, b = magnitude(samples, size), magnitude(target, size)
        log_distance = (a.clamp(min=_LOG_FLOOR).log() - b.clamp(min=_LOG_FLOOR).log()).abs().mean()
        total = total + (a - b).norm() / b.norm() + 0.5 * log_distance
    return total
