"""The velocity network of the full-size flow: a U-Net of ResNet-1D and transformer blocks.

Every level has one ResNet and some transformer blocks; all but the last halve the frames on the
way down and double them on the way up. A mask of None says that all frames are real, which spares
the masked norms and attention. Inside, frames come before channels (aqaa.vocoder.frames_first).
Letters: B clips, C channels, F mel frames, E time width.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aqaa.vocoder.frames_first import (
    Convolution,
    Gelu,
    GroupNormOfFrames,
    attend,
    lay_out,
    masked,
    mish,
)

GROUPS = 8
EXPANSION = 4
TIME_SCALE = 1000.0


def embed_time(time: Tensor, width: int) -> Tensor:
    """(B,) in 0..1 -> (B, width): sines, then cosines, of frequencies from 1000 to 0.1."""
    half = width // 2
    steps = torch.arange(half, device=time.device)
    angles = TIME_SCALE * time[:, None] * torch.exp(steps * (-math.log(1e4) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()], 1)


class ConvBlock(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, *, channels_in: int, channels: int) -> None:
        super().__init__()
        convolution = Convolution(channels_in, channels, 3, padding=1)
        self.block = nn.ModuleList([convolution, GroupNormOfFrames(GROUPS, channels)])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, F, Cin), mask (B, F, 1) or None -> (B, F, C)."""
        convolution, norm = self.block
        return mish(norm(convolution(masked(x, mask)), mask))


class ResNet(nn.Module):
    """Two convolution blocks with the flow time added between them, and a skip."""

    def __init__(self, *, channels_in: int, channels: int, time_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_width, channels))
        self.block1 = ConvBlock(channels_in=channels_in, channels=channels)
        self.block2 = ConvBlock(channels_in=channels, channels=channels)
        self.res_conv = Convolution(channels_in, channels, 1)

    def forward(self, x: Tensor, time: Tensor, mask: Tensor | None) -> Tensor:
        """(B, F, Cin), time (B, E) or (1, E), mask (B, F, 1) or None -> (B, F, C)."""
        h = self.block1(x, mask) + self.mlp(time)[:, None]
        out: Tensor = self.res_conv(x).add_(self.block2(h, mask))
        return out


class SelfAttention(nn.Module):
    """Attention over all frames, no positions."""

    def __init__(self, *, channels: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, channels))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, F, C), mask (B, F, 1) or None -> (B, F, C)."""
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        out: Tensor = self.to_out(attend(q, k, v, heads=self.heads, mask=mask))
        return out


class TransformerBlock(nn.Module):
    """Attention and an MLP, each after a norm and added to what came in."""

    def __init__(self, *, channels: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = SelfAttention(channels=channels, heads=heads, head_width=head_width)
        self.norm3 = nn.LayerNorm(channels)
        inner = EXPANSION * channels
        widen = nn.Sequential(OrderedDict(proj=nn.Linear(channels, inner), act=Gelu()))
        net = nn.Sequential(widen, nn.Identity(), nn.Linear(inner, channels))
        self.ff = nn.Sequential(OrderedDict(net=net))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, F, C), mask (B, F, 1) or None -> (B, F, C)."""
        x = self.attn1(self.norm1(x), mask).add_(x)
        out: Tensor = self.ff(self.norm3(x)).add_(x)
        return out


class Estimator(nn.Module):
    """Velocity of the flow at a point, a time and a condition.

    Args:
        channels_in: of point and conditions, stacked.
        channels_out: of the velocity.
        channels: of each level.
        heads, head_width: of the attention.
        blocks: transformer blocks after each ResNet.
        middle: levels between the way down and the way up.
    """

    def __init__(
        self,
        *,
        channels_in: int = 320,
        channels_out: int = 80,
        channels: Sequence[int] = (256, 256),
        heads: int = 8,
        head_width: int = 64,
        blocks: int = 4,
        middle: int = 12,
    ) -> None:
        super().__init__()
        self.channels_in = channels_in
        first, last = channels[0], channels[-1]
        time_width = EXPANSION * first

        def level(before: int, after: int, *resample: nn.Module) -> nn.ModuleList:
            resnet = ResNet(channels_in=before, channels=after, time_width=time_width)
            attention = nn.ModuleList(
                TransformerBlock(channels=after, heads=heads, head_width=head_width)
                for _ in range(blocks)
            )
            return nn.ModuleList([resnet, attention, *resample])

        one = nn.Linear(channels_in, time_width)
        two = nn.Linear(time_width, time_width)
        self.time_mlp = nn.Sequential(OrderedDict(linear_1=one, act=nn.SiLU(), linear_2=two))
        down = list(zip([channels_in, *channels], channels, strict=False))
        up = list(zip(channels[::-1], [*channels[-2::-1], first], strict=True))
        self.down_blocks = nn.ModuleList(
            level(before, after, _shrink(after) if i + 1 < len(down) else _keep(after))
            for i, (before, after) in enumerate(down)
        )
        self.mid_blocks = nn.ModuleList(level(last, last) for _ in range(middle))
        self.up_blocks = nn.ModuleList(
            level(2 * before, after, _grow(after) if i + 1 < len(up) else _keep(after))
            for i, (before, after) in enumerate(up)
        )
        self.final_block = ConvBlock(channels_in=first, channels=first)
        self.final_proj = Convolution(first, channels_out, 1)

    def train(self, mode: bool = True) -> "Estimator":
        """Switch to training, or to evaluation, where weights lie as products read them."""
        super().train(mode)
        lay_out(self, inputs_first=not mode)
        return self

    def forward(self, x: Tensor, time: Tensor, mask: Tensor | None = None) -> Tensor:
        """Velocity.

        Args:
            x: point and conditions, (B, Cin, F).
            time: (B,) in 0..1, or (1,) where all clips are at one time.
            mask: (B, 1, F), 1 where a frame is real; None where all are.

        Returns:
            (B, Cout, F), zero behind the mask.
        """
        if torch.is_grad_enabled() and not self.final_proj.weight.is_contiguous():
            lay_out(self, inputs_first=False)  # someone may train it in evaluation mode
        t = self.time_mlp(embed_time(time, self.channels_in))
        x, mask = x.transpose(1, 2), None if mask is None else mask.transpose(1, 2)
        skips, masks = [], [mask]
        for level in self.down_blocks:
            mask = masks[-1]
            x = _pass(level, x, t, mask)
            skips.append(x)
            x = level[2](masked(x, mask))  # type: ignore[index]
            masks.append(None if mask is None else mask[:, ::2])
        masks.pop()  # the last level kept the frames of its own
        for level in self.mid_blocks:
            x = _pass(level, x, t, masks[-1])
        for level in self.up_blocks:
            mask, skip = masks.pop(), skips.pop()
            # An odd count came back from its half one frame longer.
            x = _pass(level, torch.cat([x[:, : skip.shape[1]], skip], 2), t, mask)
            x = level[2](masked(x, mask))  # type: ignore[index]
        out: Tensor = self.final_proj(masked(self.final_block(x, mask), mask))
        return masked(out, mask).transpose(1, 2)


class Growth(nn.ConvTranspose1d):
    """A transposed convolution over frames."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, F, C) -> (B, 2 F, C)."""
        return super().forward(x.transpose(1, 2), output_size).transpose(1, 2)


def _pass(level: Any, x: Tensor, time: Tensor, mask: Tensor | None) -> Tensor:
    """A level's ResNet and transformer blocks: (B, F, Cin) -> (B, F, C)."""
    x = level[0](x, time, mask)
    for block in level[1]:
        x = block(x, mask)
    return x


def _shrink(channels: int) -> nn.Module:
    return nn.Sequential(OrderedDict(conv=Convolution(channels, channels, 3, 2, 1)))


def _grow(channels: int) -> nn.Module:
    return nn.Sequential(OrderedDict(conv=Growth(channels, channels, 4, 2, 1)))


def _keep(channels: int) -> nn.Module:
    return Convolution(channels, channels, 3, padding=1)
