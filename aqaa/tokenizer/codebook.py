"""A codebook learned by k-means and exponential moving averages (van den Oord 2017, appendix A.1).

Letters: N vectors, K codes, D code width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aqaa.errors import UsageError
from aqaa.ranks import total

_SEARCH_ROWS = 512  # vectors a search holds distances for at once: they stay in the cache
_DEVICE_SEARCH_ROWS = 8192  # on a device one large product is faster than many small ones
_FADED_COUNT = 1e-5
_START_ROWS = 32  # vectors a code that k-means++ looks at
# One vector's evidence at a decay of 0.97 has fallen to this after a hundred steps without another.
DEAD_COUNT = 1e-3


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
        return nearest(z, self.vectors)

    def forward(self, z: Tensor, mask: Tensor) -> Quantised:
        """Quantise (B, N, D); in training the averages follow the unmasked vectors.

        Distances and averages are in the book's own precision, in mixed precision too: bfloat16
        could not tell near codes apart.
        """
        with torch.autocast(z.device.type, enabled=False):
            return self._quantise(z.to(self.vectors.dtype), mask)

    def _quantise(self, z: Tensor, mask: Tensor) -> Quantised:
        codes = self.search(z.detach())
        chosen = self.vectors[codes]
        if self.training:
            real = mask.bool()
            whole = bool(real.all())  # then nothing needs to be copied
            self.update(
                z.detach().flatten(0, -2) if whole else z.detach()[real],
                codes.flatten() if whole else codes[real],
            )
        return Quantised(z + (chosen - z).detach(), codes, chosen)

    @torch.no_grad()
    def update(self, z: Tensor, codes: Tensor) -> None:
        """Move the averages towards (N, D) assigned to (N,), those of all ranks together."""
        counts = total(torch.bincount(codes, minlength=len(self.counts)).to(z.dtype))
        sums = total(torch.zeros_like(self.sums).index_add_(0, codes, z))
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        # Long unused, both averages fade to nothing: such a code stays where it was last.
        used = self.counts > _FADED_COUNT
        if bool(used.all()):
            torch.div(self.sums, self.counts[:, None], out=self.vectors)
        else:
            self.vectors[used] = self.sums[used] / self.counts[used, None]

    @torch.no_grad()
    def restart(self, z: Tensor, *, generator: torch.Generator) -> int:
        """Put codes that no vector chose for long where vectors (N, D) are; how many there were.

        Each begins with the evidence of one vector.
        """
        dead = (self.counts < DEAD_COUNT).nonzero()[:, 0]
        if len(dead) and len(z):
            picked = torch.randint(len(z), (len(dead),), generator=generator).to(z.device)
            self.vectors[dead] = z[picked].to(self.vectors.dtype)
            self.counts[dead] = 1 - self.decay
            self.sums[dead] = self.vectors[dead] * (1 - self.decay)
        return len(dead)

    @torch.no_grad()
    def hold(self, vectors: Tensor) -> None:
        """Take (K, D) as the book, each with the evidence of one vector."""
        self.vectors.copy_(vectors)
        self.counts.fill_(1.0)
        self.sums.copy_(vectors)
        self.active.fill_(True)

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


@torch.no_grad()
def nearest(z: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest of (K, D) centres to each vector; (..., D) -> (...) int64.

    Half the squared distance less half the vector's own square: one product, and no table of all
    distances.
    """
    flat = z.reshape(-1, z.shape[-1])
    half_norm = 0.5 * centres.pow(2).sum(-1)
    slice_rows = _SEARCH_ROWS if flat.device.type == "cpu" else _DEVICE_SEARCH_ROWS
    codes = []
    scores = flat.new_empty(min(slice_rows, len(flat)), len(centres))
    for begin in range(0, len(flat), slice_rows):
        part = flat[begin : begin + slice_rows]
        found = torch.mm(part, centres.T, out=scores[: len(part)]).sub_(half_norm)
        codes.append(found.max(-1).indices)  # a third faster than argmax on a CPU
    return torch.cat(codes).reshape(z.shape[:-1]) if codes else flat.new_zeros(z.shape[:-1]).long()


def check_enough(vectors: int, codes: int) -> None:
    """Refuse to cluster fewer vectors than codes; known before a training, so that none is lost."""
    if vectors < codes:
        raise UsageError(f"{vectors} vectors cannot start {codes} codes: give more sound")


@torch.no_grad()
def mini_batch_kmeans(
    vectors: Tensor, *, codes: int, epochs: int = 10, batch: int = 4096, seed: int = 0
) -> Tensor:
    """Cluster centres (codes, D) of (N, D) by k-means over mini-batches (Sculley 2010).

    Starts by k-means++, on at most 32 vectors a code, and moves each centre by the mean of all it
    was given so far; a centre that an epoch gave nothing begins again at a vector far from its own.
    The same seed gives the same centres.

    Raises:
        UsageError: fewer vectors than codes, or vectors that are no numbers.
    """
    check_enough(len(vectors), codes)
    if not bool(vectors.isfinite().all()):
        raise UsageError("the vectors to cluster hold NaN or infinite numbers")
    generator = torch.Generator().manual_seed(seed)
    first = vectors
    if len(vectors) > _START_ROWS * codes:  # as many tell where the first centres may lie
        rows = torch.randperm(len(vectors), generator=generator)[: _START_ROWS * codes]
        first = vectors[rows.to(vectors.device)]
    centres = plus_plus(first, codes=codes, generator=generator)
    given = vectors.new_zeros(codes)
    for epoch in range(epochs):
        before = given.clone()
        order = torch.randperm(len(vectors), generator=generator).to(vectors.device)
        for rows in order.split(batch):
            part = vectors[rows]
            _move(centres, given, part, nearest(part, centres))
        dead = (given == before).nonzero()[:, 0]
        if len(dead) and epoch + 1 < epochs:
            rest = (vectors - centres[nearest(vectors, centres)]).pow(2).sum(-1)
            centres[dead] = vectors[_draw(rest, len(dead), generator)]
            given[dead] = 0.0
    return centres


def _move(centres: Tensor, given: Tensor, part: Tensor, assigned: Tensor) -> None:
    """Bring centres (K, D) that were ``given`` (K,) vectors to the mean with (N, D) more."""
    more = torch.bincount(assigned, minlength=len(centres)).to(part.dtype)
    sums = torch.zeros_like(centres).index_add_(0, assigned, part)
    given.add_(more)
    centres.add_((sums - more[:, None] * centres) / given.clamp(min=1.0)[:, None])


def plus_plus(vectors: Tensor, *, codes: int, generator: torch.Generator) -> Tensor:
    """First centres (codes, D) by k-means++: each drawn by its squared distance to those before."""
    chosen = torch.randint(len(vectors), (1,), generator=generator).to(vectors.device)
    rest = vectors.new_full((len(vectors),), torch.inf)
    for _ in range(codes - 1):
        rest = torch.minimum(rest, (vectors - vectors[chosen[-1]]).pow(2).sum(-1))
        chosen = torch.cat([chosen, _draw(rest, 1, generator)])
    return vectors[chosen].clone()


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices (count,) drawn in proportion to (N,) weights; evenly where all are nothing.

    By the sums of the weights, as a draw without replacement is held to 2 ** 24 of them.
    """
    sums = weights.double().cumsum(0)
    if not bool(sums[-1] > 0):
        return torch.randint(len(weights), (count,), generator=generator).to(weights.device)
    points = torch.rand(count, generator=generator, dtype=torch.float64).to(weights.device)
    return torch.searchsorted(sums, points * sums[-1], right=True).clamp(max=len(weights) - 1)
