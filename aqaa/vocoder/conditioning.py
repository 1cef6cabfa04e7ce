"""Codes of both books on one time grid.

Letters: B clips, G groups, C channels, P = 6 G pair frames, W width of a code.

The flow works on pairs of 10 ms mel frames, so a group of 120 ms is six positions: a linguistic
code lasts three of them, a semantic code two.
"""

import torch
from torch import Tensor, nn

from aqaa.signals import (
    GROUP_FRAMES,
    LINGUISTIC_CODES,
    LINGUISTIC_PER_GROUP,
    SEMANTIC_CODES,
    SEMANTIC_PER_GROUP,
)

PAIRS_PER_GROUP = GROUP_FRAMES // 2
LINGUISTIC_PAIRS = PAIRS_PER_GROUP // LINGUISTIC_PER_GROUP
SEMANTIC_PAIRS = PAIRS_PER_GROUP // SEMANTIC_PER_GROUP


class CodeConditioning(nn.Module):
    """Embeds both books and smooths them; audio ids are the only condition (paper section 2.3)."""

    def __init__(self, *, width: int, code_width: int) -> None:
        super().__init__()
        self.linguistic = nn.Embedding(LINGUISTIC_CODES, code_width)
        self.semantic = nn.Embedding(SEMANTIC_CODES, code_width)
        self.layers = nn.ModuleList(
            [
                nn.Conv1d(2 * code_width + 1, width, 5, padding=2),
                nn.Conv1d(width, width, 5, padding=2),
                nn.Conv1d(width, width, 3, padding=1),
            ]
        )

    def forward(self, linguistic: Tensor, semantic: Tensor, mask: Tensor) -> Tensor:
        """(B, 2G) and (B, 3G) codes with a mask (B, P) -> (B, C, P)."""
        a = self.linguistic(linguistic).transpose(1, 2).repeat_interleave(LINGUISTIC_PAIRS, 2)
        b = self.semantic(semantic).transpose(1, 2).repeat_interleave(SEMANTIC_PAIRS, 2)
        place = torch.arange(a.shape[2], device=a.device) % PAIRS_PER_GROUP
        phase = (place / (PAIRS_PER_GROUP / 2) - 1).expand(len(a), 1, -1)
        x = torch.cat([a, b, phase], 1)
        for i, layer in enumerate(self.layers):
            x = layer(x * mask[:, None])
            if i + 1 < len(self.layers):
                x = nn.functional.gelu(x)
        return x

    @torch.no_grad()
    def start_from(self, linguistic: Tensor, semantic: Tensor) -> None:
        """Start the embeddings from code vectors of this width, (1024, W) and (4096, W).

        Codes that sound alike then start alike.
        """
        for table, vectors in ((self.linguistic, linguistic), (self.semantic, semantic)):
            table.weight.mul_(0.43).add_(vectors, alpha=0.9)
