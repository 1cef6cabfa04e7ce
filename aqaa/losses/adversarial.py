"""Least-squares adversarial losses of a waveform head (HiFi-GAN), as functions of verdicts.

Letters: B clips; a score is a tensor of any shape, one number a place a discriminator looks at.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def discriminator_loss(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """Scores of real sound should be 1, of made sound 0: sum over judges of two mean squares."""
    pairs = zip(real, made, strict=True)
    return torch.stack([(1 - r).pow(2).mean() + m.pow(2).mean() for r, m in pairs]).sum()


def generator_loss(made: Sequence[Tensor]) -> Tensor:
    """Scores of made sound should be 1: sum over judges of mean squares."""
    return torch.stack([(1 - m).pow(2).mean() for m in made]).sum()


def feature_matching(
    real: Sequence[Sequence[Tensor]], made: Sequence[Sequence[Tensor]]
) -> Tensor:
    """What judges hear on their way: sum over judges and layers of mean absolute differences.

    Args:
        real: features of each judge's layers for real sound; no gradient flows into them.
        made: the same for made sound.
    """
    distances = [
        (m - r.detach()).abs().mean()
        for judge_real, judge_made in zip(real, made, strict=True)
        for r, m in zip(judge_real, judge_made, strict=True)
    ]
    return torch.stack(distances).sum()


def mel_distance(mel: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of two log-mels (B, bins, frames) -> scalar."""
    return (mel - target).abs().mean()
