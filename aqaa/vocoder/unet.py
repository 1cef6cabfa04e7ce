"""The velocity network: a U-Net of ResNet-1D and attention blocks with one down and one up step.

Letters: B clips, C channels, P pair frames (50 Hz), E time embedding.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqaa.layers import ConvAttention, MaskedGroupNorm

GROUPS = 8
TIME_SCALE = 1000.0


class ResNet(nn.Module):
    """Two convolutions around a scale and shift by the flow time, and a skip."""

    def __init__(self, *, channels_in: int, channels: int, time_width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv1d(channels_in, channels, 3, padding=1)
        self.norm_in = MaskedGroupNorm(GROUPS, channels)
        self.time = nn.Linear(time_width, 2 * channels)
        self.conv_out = nn.Conv1d(channels, channels, 3, padding=1)
        self.norm_out = MaskedGroupNorm(GROUPS, channels)
        same = channels_in == channels
        self.skip = nn.Identity() if same else nn.Conv1d(channels_in, channels, 1)

    def forward(self, x: Tensor, time: Tensor, mask: Tensor) -> Tensor:
        """(B, Cin, P), time (B, E), mask (B, 1, P) -> (B, C, P)."""
        scale, shift = self.time(time)[..., None].chunk(2, 1)
        h = F.silu(self.norm_in(self.conv_in(x * mask), mask)) * (1 + scale) + shift
        h = F.silu(self.norm_out(self.conv_out(h * mask), mask))
        return h + self.skip(x)


class Level(nn.Module):
    """A ResNet and an attention block at one resolution."""

    def __init__(self, *, channels_in: int, channels: int, time_width: int) -> None:
        super().__init__()
        self.resnet = ResNet(channels_in=channels_in, channels=channels, time_width=time_width)
        self.attention = ConvAttention(width=channels)

    def forward(self, x: Tensor, time: Tensor, mask: Tensor) -> Tensor:
        """(B, Cin, P) -> (B, C, P)."""
        x = self.resnet(x, time, mask)
        return self.attention(x.transpose(1, 2), mask[:, 0]).transpose(1, 2)


class UNet(nn.Module):
    """Velocity of the flow at a point, a time and a condition."""

    def __init__(self, *, channels_io: int, channels: int, time_width: int = 96) -> None:
        super().__init__()
        self.time_width = time_width
        self.time = nn.Sequential(
            nn.Linear(time_width, time_width), nn.SiLU(), nn.Linear(time_width, time_width)
        )

        def level(channels_in: int) -> Level:
            return Level(channels_in=channels_in, channels=channels, time_width=time_width)

        self.down = level(channels_io + channels)
        self.shrink = nn.Conv1d(channels, channels, 4, stride=2, padding=1)
        self.middle = nn.ModuleList([level(channels), level(channels)])
        self.grow = nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1)
        self.up = level(2 * channels)
        self.project = nn.Conv1d(channels, channels_io, 1)

    def forward(self, x: Tensor, condition: Tensor, time: Tensor, mask: Tensor) -> Tensor:
        """Velocity at ``x``.

        Args:
            x: (B, Cio, P), P even.
            condition: (B, C, P).
            time: (B,) in 0..1.
            mask: (B, P), 1 where a pair frame is real.
        """
        t = self.time(self._embed(time))
        full, half = mask[:, None], mask[:, None, ::2]
        kept = self.down(torch.cat([x, condition], 1), t, full)
        h = self.shrink(kept * full)
        for level in self.middle:
            h = level(h, t, half)
        h = self.up(torch.cat([self.grow(h * half), kept], 1), t, full)
        return self.project(h)

    def _embed(self, time: Tensor) -> Tensor:
        """(B,) -> (B, E): sines and cosines of geometric frequencies."""
        half = self.time_width // 2
        steps = torch.arange(half, device=time.device)
        angles = time[:, None] * TIME_SCALE * torch.exp(steps * (-math.log(1e4) / half))
        return torch.cat([angles.sin(), angles.cos()], 1)
