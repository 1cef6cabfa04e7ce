"""From the rate of tokens to the rate of mel frames.

Letters: B clips, C channels, N tokens, F mel frames.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqaa.layers import MaskedGroupNorm


def stretch(x: Tensor, token_counts: Sequence[int], frame_counts: Sequence[int]) -> Tensor:
    """Interpolate each item's own tokens linearly over its own frames.

    Args:
        x: (B, C, N).
        token_counts: real tokens of each item.
        frame_counts: frames each item is to have.

    Returns:
        (B, C, F) with F the largest frame count; zeros behind an item's end.
    """
    longest = max(frame_counts)
    if len(set(token_counts)) == 1 and len(set(frame_counts)) == 1:
        return F.interpolate(x[:, :, : token_counts[0]], size=longest, mode="linear")
    items = (
        F.interpolate(x[i : i + 1, :, :tokens], size=frames, mode="linear")
        for i, (tokens, frames) in enumerate(zip(token_counts, frame_counts, strict=True))
    )
    return torch.cat([F.pad(item, (0, longest - item.shape[2])) for item in items])


class LengthRegulator(nn.Module):
    """Smooths what was stretched: convolutions, each with a norm over the whole clip."""

    def __init__(self, *, channels: int, layers: int = 4) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for _ in range(layers):
            smooth = nn.Conv1d(channels, channels, 3, padding=1)
            blocks += [smooth, MaskedGroupNorm(1, channels), nn.Mish()]
        self.model = nn.ModuleList([*blocks, nn.Conv1d(channels, channels, 1)])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, C, F), mask (B, 1, F) or None -> (B, C, F), zero behind the mask."""
        for layer in self.model:
            if isinstance(layer, MaskedGroupNorm):
                x = layer(x, mask)
            else:
                x = layer(x if mask is None else x * mask)
        return x if mask is None else x * mask
