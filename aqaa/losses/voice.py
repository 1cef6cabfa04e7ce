"""What a code must tell besides words: pitch, level, emotion.

Letters: B clips, N places, E emotions.
"""

from torch import Tensor
from torch.nn import functional as F

MIDDLE_HZ, OCTAVE = 150.0, 0.6931  # pitch is told in octaves about a middling voice


def pitch_distance(voiced: Tensor, octaves: Tensor, f0_hz: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of voicing and, where something is voiced, the absolute error in octaves.

    Args:
        voiced: (B, N) logits.
        octaves: (B, N) above ``MIDDLE_HZ``.
        f0_hz: (B, N), 0 where nothing is voiced.
        mask: (B, N), 1 where a place is real.

    Returns:
        Scalar: mean over the real places, plus mean over the voiced ones.
    """
    sung = (f0_hz > 0).to(mask.dtype)
    voicing = F.binary_cross_entropy_with_logits(voiced, sung, reduction="none")
    wanted = (f0_hz.clamp(min=1.0) / MIDDLE_HZ).log() / OCTAVE
    error = (octaves - wanted).abs() * sung * mask
    return (voicing * mask).sum() / mask.sum() + error.sum() / (sung * mask).sum().clamp(min=1)


def level_distance(level: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error of a level in nats over real places; (B, N) each -> scalar."""
    return ((level - target).abs() * mask).sum() / mask.sum()


def emotion_loss(logits: Tensor, emotion: Tensor) -> Tensor:
    """Cross-entropy of (B, E) against numbers (B,), -1 where none is known; 0 where none is."""
    known = (emotion >= 0).sum().clamp(min=1)
    return F.cross_entropy(logits, emotion, ignore_index=-1, reduction="sum") / known
