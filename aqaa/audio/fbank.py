"""Filter banks at a low frame rate: 560 numbers every 60 ms, for the released linguistic book.

Kaldi's log filter banks (80 bins, 25 ms windows every 10 ms), seven frames stacked every six. A
stream brings them in blocks of 240 ms, and so does a whole file: its last block may be too short
to give any.
Letters: T samples, F frames of 10 ms, N stacked frames of 60 ms.
"""

from typing import Any

import torch
from torch import Tensor

from aqaa.audio import torchaudio_shim
from aqaa.errors import UsageError
from aqaa.signals import MEL_BINS, MEL_RATE_HZ, QUESTION_RATE_HZ

torchaudio_shim.ensure()

HOP_SAMPLES = QUESTION_RATE_HZ // MEL_RATE_HZ
WINDOW_SAMPLES = 400
STACKED, STEP = 7, 6
SIDE = STACKED // 2
FRAME_WIDTH = STACKED * MEL_BINS
BLOCK_FRAMES = 4  # stacked ones a stream's block brings
BLOCK_SAMPLES = BLOCK_FRAMES * STEP * HOP_SAMPLES
# A block's first stacked frame reaches this far back into the one before.
CONTEXT_SAMPLES = SIDE * HOP_SAMPLES
# A last block with less than this fills no stacked frame, and what it holds is left out.
SHORTEST_BLOCK_SAMPLES = 880
_LEVEL = 2.0**15  # Kaldi's numbers are those of 16-bit sound


def linguistic_frontend(waveform: Tensor, *, dither: float = 0.0) -> Tensor:
    """Stacked filter banks of a whole clip, before mean and variance are normalised.

    Args:
        waveform: (T,) mono sound at 16 kHz in -1..1.
        dither: standard deviation of noise added to each window, in 16-bit steps; 0 is repeatable.

    Returns:
        (N, 560), N = :func:`stacked_frames` of T.
    """
    if waveform.dim() != 1:
        raise UsageError(f"one clip (T,) is needed, not sound of shape {tuple(waveform.shape)}")
    return stack_frames(fbank(waveform, dither=dither), stacked_frames(len(waveform)))


def stacked_frames(samples: int) -> int:
    """How many stacked frames a clip of so many samples gives."""
    whole, rest = divmod(samples, BLOCK_SAMPLES)
    if rest < SHORTEST_BLOCK_SAMPLES:
        return whole * BLOCK_FRAMES
    return -(-(1 + (samples - WINDOW_SAMPLES) // HOP_SAMPLES) // STEP)


def fbank(samples: Tensor, *, dither: float = 0.0) -> Tensor:
    """Log filter banks of (T,) samples in -1..1: (F, 80), whole windows only."""
    if len(samples) < WINDOW_SAMPLES:
        return samples.new_zeros(0, MEL_BINS)
    found: Tensor = _kaldi().fbank(
        samples[None].float() * _LEVEL,
        num_mel_bins=MEL_BINS,
        frame_length=1000 * WINDOW_SAMPLES / QUESTION_RATE_HZ,
        frame_shift=1000 / MEL_RATE_HZ,
        dither=dither,
        energy_floor=0.0,
        window_type="hamming",
        sample_frequency=QUESTION_RATE_HZ,
        snip_edges=True,
    )
    return found


def _kaldi() -> Any:
    try:
        from torchaudio.compliance import kaldi
    except (ImportError, OSError) as error:
        raise UsageError(f"Kaldi's filter banks need torchaudio: {error}") from None
    return kaldi


def stack_frames(frames: Tensor, count: int, *, opening: bool = True) -> Tensor:
    """Stack (F, 80) into (count, 560); what is missing on the right repeats the last frame.

    Args:
        frames: of the clip, or of a block and the three frames before it.
        count: stacked frames to give.
        opening: the clip begins here: its first frame stands in for the three before it.
    """
    if not count:
        return frames.new_zeros(0, FRAME_WIDTH)
    left = frames[:1].expand(SIDE if opening else 0, -1)
    needed = STEP * (count - 1) + STACKED
    missing = max(0, needed - len(left) - len(frames))
    padded = torch.cat([left, frames, frames[-1:].expand(missing, -1)])
    return padded.unfold(0, STACKED, STEP)[:count].transpose(1, 2).reshape(count, FRAME_WIDTH)
