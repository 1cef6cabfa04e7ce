"""A codebook learned by k-means and exponential moving averages (van den Oord 2017, appendix A.1).

Letters: N vectors, K codes, D code width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SEARCH_ROWS = 4096  # vectors a search holds distances for at once
_FADED_COUNT = 1e-5


@dataclass(frozen=True)
class Quantised:
    """``vectors`` (..., D) with a straight-through gradient, ``codes`` (...) int64.

    ``chosen`` (..., D) are the book's own vectors, as they were before this step moved them.
    """

    vectors: Tensor
    codes: Tensor
    chosen: Tensor


class Codebook(nn.Module):
    """K vectors of width D; ``active`` turns True once they were started from data."""

    vectors: Tensor
    counts: Tensor
    sums: Tensor
    active: Tensor

    def __init__(self, *, codes: int, width: int, decay: float = 0.97) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("vectors", torch.zeros(codes, width))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", torch.zeros(codes, width))
        self.register_buffer("active", torch.tensor(False))

    def search(self, z: Tensor) -> Tensor:
        """Nearest code (Euclidean) of each vector; (..., D) -> (...)."""
        flat = z.reshape(-1, z.shape[-1])
        half_norm = 0.5 * self.vectors.pow(2).sum(-1)
        rows = flat.split(_SEARCH_ROWS)
        parts = [(half_norm - part @ self.vectors.T).argmin(-1) for part in rows]
        return torch.cat(parts).reshape(z.shape[:-1])

    def forward(self, z: Tensor, mask: Tensor) -> Quantised:
        """Quantise (B, N, D); in training the averages follow the unmasked vectors."""
        codes = self.search(z.detach())
        chosen = self.vectors[codes]
        if self.training:
            self.update(z.detach()[mask.bool()], codes[mask.bool()])
        return Quantised(z + (chosen - z).detach(), codes, chosen)

    @torch.no_grad()
    def update(self, z: Tensor, codes: Tensor) -> None:
        """Move the averages towards (N, D) assigned to (N,)."""
        counts = torch.bincount(codes, minlength=len(self.counts)).to(z.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, z)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        # Long unused, both averages fade to nothing: such a code stays where it was last.
        used = self.counts > _FADED_COUNT
        self.vectors[used] = self.sums[used] / self.counts[used, None]

    @torch.no_grad()
    def start(self, z: Tensor, *, rounds: int, generator: torch.Generator) -> None:
        """Start the codes by k-means on (N, D); with fewer vectors than codes, jittered copies."""
        codes = len(self.counts)
        if len(z) >= codes:
            self.vectors.copy_(z[torch.randperm(len(z), generator=generator)[:codes]])
        else:
            picked = z[torch.randint(len(z), (codes,), generator=generator)]
            noise = torch.randn(picked.shape, generator=generator)
            self.vectors.copy_(picked + 0.01 * z.std() * noise)
        counts = torch.ones(codes)
        for _ in range(rounds):
            assigned = self.search(z)
            counts = torch.bincount(assigned, minlength=codes).to(z.dtype)
            sums = torch.zeros_like(self.sums).index_add_(0, assigned, z)
            used = counts > 0
            self.vectors[used] = sums[used] / counts[used, None]
        # A tenth of the evidence: the averages soon follow the encoder as it moves on.
        self.counts.copy_(counts.clamp(min=0.01) / 10)
        self.sums.copy_(self.vectors * self.counts[:, None])
        self.active.fill_(True)
