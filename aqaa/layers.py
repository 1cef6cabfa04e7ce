"""Network layers that more than one organ uses.

Letters: B clips, N positions, W width, C channels, F frames, H heads, K codes, D code width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqaa.errors import UsageError


class ConvAttention(nn.Module):
    """Pre-norm attention and MLP after a depthwise convolution, which stands in for positions."""

    def __init__(self, *, width: int, heads: int = 4, kernel: int = 7, expansion: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, expansion * width)
        self.mlp_out = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, N, W), mask (B, N) of real positions -> (B, N, W)."""
        x = x * mask[..., None]
        x = x + self.convolution(x.transpose(1, 2)).transpose(1, 2)
        batch, length, width = x.shape
        qkv = self.attention_in(self.attention_norm(x))
        by_head = qkv.view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = by_head.permute(2, 0, 3, 1, 4)
        real = mask[:, None, None, :].bool()
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=real)
        x = x + self.attention_out(heard.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


class MaskedGroupNorm(nn.GroupNorm):
    """Group normalisation over real frames only, so that padding changes nothing."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        """(B, C, F), mask (B, 1, F) or None where all frames are real -> (B, C, F)."""
        if mask is None:
            return super().forward(x)
        batch, channels, frames = x.shape
        x = (x * mask).view(batch, self.num_groups, channels // self.num_groups, frames)
        count = mask.sum(2)[..., None, None] * (channels // self.num_groups)
        mean = x.sum((2, 3), keepdim=True) / count
        square = x.pow(2).sum((2, 3), keepdim=True) / count
        # Rounding may leave less than nothing where the mean is large and the spread is not.
        variance = (square - mean.pow(2)).clamp(min=0)
        x = (x - mean) * torch.rsqrt(variance + self.eps)
        return x.view(batch, channels, frames) * self.weight[:, None] + self.bias[:, None]


def spread(codebook: Tensor, width: int, *, seed: int) -> Tensor:
    """Turn code vectors (K, D) into (K, width) of unit variance; distances keep their proportion.

    They are standardised and put through a random orthonormal map.

    Raises:
        UsageError: rows are narrower than the vectors, or the codebook was never trained.
    """
    code_width = codebook.shape[1]
    if code_width > width:
        raise UsageError(f"code vectors of width {code_width} do not fit rows of width {width}")
    if not bool(codebook.std() > 0):
        raise UsageError("the codebook was never started from data: all its vectors are equal")
    centred = (codebook - codebook.mean(0)) / codebook.std()
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, code_width, generator=generator))[0].T
    return centred @ basis * math.sqrt(width / code_width)
