"""What is around a token: transformer layers with relative positions, full context.

The mathematics of Transformer-XL as speech recognition uses it, without a convolution module.
Letters: B clips, N tokens, C width, H heads, D = C / H, I inner width.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def relative_positions(count: int, width: int, *, device: torch.device) -> Tensor:
    """Sines and cosines, in turns, of the distances N-1 .. -(N-1): (2N - 1, C)."""
    distance = torch.arange(count - 1, -count, -1.0, device=device)
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(1e4) / width))
    angles = distance[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)


def by_distance(scores: Tensor) -> Tensor:
    """Scores of query i against each distance, (B, H, N, 2N - 1), as ones against key j.

    Query i finds key j, at the distance i - j, in column N - 1 - i + j: in the flattened rows each
    window of N columns begins 2N - 2 numbers after the one before.
    """
    count = scores.shape[2]
    return scores.flatten(2)[..., count - 1 :].unfold(2, count, max(2 * count - 2, 1))


class RelativeAttention(nn.Module):
    """Attention whose scores add what a query says about a distance to what it says about a key."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, width // heads))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, C), positions (2N - 1, C), mask (B, N) or None -> (B, N, C)."""
        heads, head_width = self.pos_bias_u.shape
        q, k, v = (
            layer(x).unflatten(2, (heads, head_width)).transpose(1, 2)
            for layer in (self.linear_q, self.linear_k, self.linear_v)
        )
        places = self.linear_pos(positions).unflatten(1, (heads, head_width)).transpose(0, 1)
        bias = by_distance((q + self.pos_bias_v[:, None]) @ places.mT) / math.sqrt(head_width)
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, None].bool(), -math.inf)
        heard = F.scaled_dot_product_attention(q + self.pos_bias_u[:, None], k, v, attn_mask=bias)
        out: Tensor = self.linear_out(heard.transpose(1, 2).flatten(2))
        return out


class EncoderLayer(nn.Module):
    """Attention and a two-layer MLP, each after a norm and added to what came in."""

    def __init__(self, *, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(width=width, heads=heads)
        layers = [("w_1", nn.Linear(width, inner)), ("act", nn.SiLU())]
        self.feed_forward = nn.Sequential(OrderedDict([*layers, ("w_2", nn.Linear(inner, width))]))
        self.norm_mha = nn.LayerNorm(width)
        self.norm_ff = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        heard = self.self_attn(self.norm_mha(x), positions, mask)
        x = x + F.dropout(heard, self.dropout, self.training)
        return x + F.dropout(self.feed_forward(self.norm_ff(x)), self.dropout, self.training)


class TokenEncoder(nn.Module):
    """Token embeddings in, vectors that know their surroundings out.

    Args:
        code_width: of the embeddings.
        width, heads, inner, layers: of the transformer.
        dropout: of each branch while training.
    """

    def __init__(
        self,
        *,
        code_width: int = 512,
        width: int = 512,
        heads: int = 8,
        inner: int = 2048,
        layers: int = 6,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.width = width
        self.dropout = dropout
        into = nn.Sequential(nn.Linear(code_width, width), nn.LayerNorm(width))
        self.embed = nn.Sequential(OrderedDict(out=into))
        self.encoders = nn.ModuleList(
            EncoderLayer(width=width, heads=heads, inner=inner, dropout=dropout)
            for _ in range(layers)
        )
        self.after_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Embeddings (B, N, code width), mask (B, N) or None -> (B, N, C).

        Rows behind the mask hold numbers without a meaning.
        """
        x = self.embed(x) * math.sqrt(self.width)
        x = F.dropout(x, self.dropout, self.training)
        positions = relative_positions(x.shape[1], self.width, device=x.device).to(x.dtype)
        for layer in self.encoders:
            x = layer(x, positions, mask)
        out: Tensor = self.after_norm(x)
        return out
