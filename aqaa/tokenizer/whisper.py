"""The semantic encoder: a Whisper-style transformer at 25 Hz with a codebook in its middle.

Two convolutions take four mel frames to one position; what the blocks make of it is brought to
unit length and named by the nearest code. Trained to transcribe with more blocks behind the book,
it is then cut here. Names of the encoder's parameters are those of the released file.
Letters: B clips, M mel bins, F mel frames, T positions of 40 ms, W width, H heads.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqaa.errors import UsageError
from aqaa.tokenizer.codebook import Codebook

STRIDE = 2  # of both convolutions: from 100 to 25 Hz


class SemanticOutput(NamedTuple):
    """``hidden`` (B, T, W) before it is scaled, ``lengths`` (B,), ``codes`` (B, T) int64.

    What lies behind a clip's length means nothing.
    """

    hidden: Tensor
    lengths: Tensor
    codes: Tensor


class WhisperAttention(nn.Module):
    """Attention over a whole clip; keys have no bias."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """(B, T, W), real positions (B, 1, 1, T) -> (B, T, W)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=real)
        return self.out(heard.transpose(1, 2).flatten(2))


class WhisperBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, *, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attn = WhisperAttention(width=width, heads=heads)
        self.attn_ln = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """(B, T, W), real positions (B, 1, 1, T) -> (B, T, W)."""
        x = x + self.attn(self.attn_ln(x), real)
        return x + self.mlp(self.mlp_ln(x))


class WhisperEncoder(nn.Module):
    """Mel to hidden vectors; no norm after the last block."""

    positional_embedding: Tensor

    def __init__(
        self, *, bins: int, width: int, blocks: int, heads: int, inner: int, positions: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(bins, width, 3, stride=STRIDE, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=STRIDE, padding=1)
        self.register_buffer("positional_embedding", _sinusoids(positions, width))
        self.blocks = nn.ModuleList(
            WhisperBlock(width=width, heads=heads, inner=inner) for _ in range(blocks)
        )

    def forward(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, F), (B,) frames -> hidden (B, T, W), (B,) positions."""
        x = mel
        for convolution in (self.conv1, self.conv2):
            x = F.gelu(convolution(x * _real(lengths, x.shape[2])[:, None]))
            lengths = (lengths - 1) // STRIDE + 1
        x = x.transpose(1, 2)
        if x.shape[1] > len(self.positional_embedding):
            raise UsageError(
                f"{mel.shape[2]} mel frames need {x.shape[1]} positions, the encoder has "
                f"{len(self.positional_embedding)}: cut the clip into pieces"
            )
        x = x + self.positional_embedding[: x.shape[1]]
        real = _real(lengths, x.shape[1])[:, None, None]
        for block in self.blocks:
            x = block(x, real)
        return x, lengths


class SemanticEncoder(nn.Module):
    """The encoder and its codebook.

    Args:
        bins: of the mel.
        width, blocks, heads, inner: of the transformer.
        positions: the longest clip, in steps of 40 ms.
        codes: size of the book.
    """

    def __init__(
        self,
        *,
        bins: int = 128,
        width: int = 1280,
        blocks: int = 6,
        heads: int = 20,
        inner: int = 5120,
        positions: int = 1500,
        codes: int = 4096,
    ) -> None:
        super().__init__()
        self.encoder = WhisperEncoder(
            bins=bins, width=width, blocks=blocks, heads=heads, inner=inner, positions=positions
        )
        self.codebook = Codebook(codes=codes, width=width)

    def forward(self, mel: Tensor, lengths: Tensor) -> SemanticOutput:
        """(B, M, F) log-mel and (B,) frames of each clip."""
        hidden, positions = self.encoder(mel, lengths)
        codes = self.codebook.search(F.normalize(hidden.detach(), dim=-1))
        return SemanticOutput(hidden, positions, codes)


def _real(lengths: Tensor, places: int) -> Tensor:
    """(B,) -> (B, places): True before each length."""
    return torch.arange(places, device=lengths.device) < lengths[:, None]


def _sinusoids(positions: int, width: int) -> Tensor:
    """(positions, width): sines, then cosines, of wavelengths up to 10,000 steps."""
    rates = torch.exp(torch.arange(width // 2) * (-math.log(10_000) / (width // 2 - 1)))
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
