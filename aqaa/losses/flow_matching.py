"""Optimal-transport conditional flow matching (paper section 2.3; Matcha-TTS, CosyVoice).

x_t = (1 - (1 - sigma_min) t) x_0 + t x_1 with x_0 noise and x_1 the mel; the network predicts the
constant velocity u = x_1 - (1 - sigma_min) x_0. Letters: B clips, C channels, F frames.
"""

from math import pi

import torch
from torch import Tensor

SIGMA_MIN = 1e-6


def cosine_time(uniform: Tensor) -> Tensor:
    """Warp uniform times so that early steps are small: 1 - cos(pi/2 t)."""
    return 1 - torch.cos(uniform * pi / 2)


def path(noise: Tensor, mel: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Point on the path and its velocity; (B, C, F), (B, C, F), (B,) -> two (B, C, F)."""
    t = time[:, None, None]
    point = (1 - (1 - SIGMA_MIN) * t) * noise + t * mel
    return point, mel - (1 - SIGMA_MIN) * noise


def flow_matching(velocity: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared velocity error over real frames; (B, C, F), (B, C, F), (B, F) -> scalar."""
    squared = (velocity - target).pow(2) * mask[:, None]
    return squared.sum() / (mask.sum() * velocity.shape[1])
