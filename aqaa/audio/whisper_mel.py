"""The log-mel of Whisper-style encoders: 128 bins, 100 frames a second, scaled by its loudest bin.

Letters: T samples, F frames, N bins of the spectrum (201).
"""

from functools import lru_cache

import torch
from torch import Tensor

from aqaa.audio import torchaudio_shim
from aqaa.errors import UsageError
from aqaa.signals import MEL_RATE_HZ, QUESTION_RATE_HZ

torchaudio_shim.ensure()

BINS = 128
FFT_SAMPLES = 400
HOP_SAMPLES = QUESTION_RATE_HZ // MEL_RATE_HZ
_FLOOR = 1e-10
_RANGE = 8.0  # decades below the loudest bin that are kept


def whisper_mel(samples: Tensor, *, bins: int = BINS) -> Tensor:
    """Log-mel of one clip.

    Args:
        samples: (T,) mono sound at 16 kHz, at least 201 of them.
        bins: of the mel scale.

    Returns:
        (bins, T // 160); the loudest bin of the clip decides what counts as silence in it.
    """
    if len(samples) <= FFT_SAMPLES // 2:
        raise UsageError(
            f"{len(samples)} samples are too few for a mel: at least {FFT_SAMPLES // 2 + 1} "
            "are needed"
        )
    window, filters = _constants(bins, samples.device)
    spectrum = torch.stft(
        samples.float(), FFT_SAMPLES, HOP_SAMPLES, window=window, return_complex=True
    )
    power = spectrum[:, :-1].abs().square()
    log_mel = (filters @ power).clamp(min=_FLOOR).log10()
    return (torch.maximum(log_mel, log_mel.max() - _RANGE) + 4.0) / 4.0


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # or a later backward pass could not use them
def _constants(bins: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Hann window (400,) and Slaney's mel filters (bins, N), each of unit area."""
    try:
        from torchaudio.functional import melscale_fbanks
    except (ImportError, OSError) as error:
        raise UsageError(f"Slaney's mel filters need torchaudio: {error}") from None
    filters: Tensor = melscale_fbanks(
        FFT_SAMPLES // 2 + 1,
        0.0,
        QUESTION_RATE_HZ / 2,
        bins,
        QUESTION_RATE_HZ,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.hann_window(FFT_SAMPLES, device=device), filters.T.contiguous().to(device)
