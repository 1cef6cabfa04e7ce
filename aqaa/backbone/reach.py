"""Which keys a query may see: its own document up to itself, worked out once for all layers.

Letters: B sequences, Q queries, K keys (those cached, then the queries' own), N blocks of places.
Distances are counted along the row. Inside a document that is the difference of positions, for its
places are neighbours, packed or padded. In a row that forks they are not: its second branch goes on
from where the first began, neither sees the first nor is any further from what they share.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

_BLOCK = 128  # places a block of the flex kernel


@dataclass(frozen=True)
class Reach:
    """Queries at places cached..cached+Q-1 of their rows.

    Args:
        cached: keys before the first query.
        queries: Q.
        device: of the ids.
        starts: (B, Q) first key that each query sees (None: all see from key 0).
        forks: (B, 2) places where the first and the second branch of a row begin (None: no row
            forks).
    """

    cached: int
    queries: int
    device: torch.device
    starts: Tensor | None = None
    forks: Tensor | None = None

    @classmethod
    def of(
        cls,
        ids: Tensor,
        *,
        cached: int = 0,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        forks: Tensor | None = None,
    ) -> "Reach":
        """Reach of ids (B, Q).

        Args:
            ids: the queries' ids; only their shape and device count.
            cached: keys before the first of them.
            attention_mask: (B, K), 0 where a row is padded, left or right.
            position_ids: (B, Q) or (1, Q), 0 where a document begins.
            forks: (B, 2) where the branches begin, of rows that are one document each.

        Raises:
            ValueError: a mask of another shape, or with padding inside a row; forks beside either
                of the others or a cache.
        """
        batch, queries = ids.shape
        if forks is not None:
            if cached or attention_mask is not None or position_ids is not None:
                raise ValueError("a row that forks takes no cache, mask or positions")
            return cls(0, queries, ids.device, forks=forks)
        plain = cls(cached, queries, ids.device)
        if attention_mask is None and position_ids is None:
            return plain
        place = torch.arange(cached, cached + queries, device=ids.device)
        starts = torch.zeros_like(ids)
        if position_ids is not None:
            before = (cached - position_ids[:, :1]).clamp(min=0) if cached else 0
            found = torch.where(position_ids == 0, place, before).cummax(1).values
            starts = found.expand(batch, -1)
        if attention_mask is not None:
            padded = _left_padding(attention_mask, (batch, cached + queries))
            starts = torch.where(place < padded, 0, starts.maximum(padded))
        # A GPU would wait for this look; elsewhere it finds the rows that are plain after all.
        if starts.device.type == "cpu" and not bool(starts.any()):
            return plain
        return replace(plain, starts=starts)

    @cached_property
    def documents(self) -> list[tuple[int, list[int]]]:
        """Of each row: the keys before its first document, and its documents' counts of queries."""
        assert self.starts is not None
        runs = [row.unique_consecutive(return_counts=True) for row in self.starts]
        return [(int(starts[0]), counts.tolist()) for starts, counts in runs]

    @cached_property
    def branches(self) -> list[list[int]]:
        """The forks as numbers."""
        assert self.forks is not None
        return self.forks.tolist()

    @cached_property
    def block_mask(self) -> BlockMask:
        """What flex skips, masks and need not mask, from the starts: no (Q, K) tensor is made."""
        starts, places = self.starts, self.queries
        if self.forks is not None:
            first, second = self.forks.unbind(1)
            seen, full = _forked_blocks(self.forks, places)
            return _block_mask(
                seen, full, places,
                lambda b, h, i, j: (j <= i) & ((i < second[b]) | (j < first[b]) | (j >= second[b])),
            )  # fmt: skip
        if starts is None:
            starts = torch.zeros(1, places, dtype=torch.long, device=self.device)
            seen, full = _blocks(starts)
            return _block_mask(seen, full, places, lambda b, h, i, j: j <= i)
        seen, full = _blocks(starts)
        return _block_mask(
            seen, full, places, lambda b, h, i, j: (j <= i) & (j >= starts[b, i])
        )


def _blocks(starts: Tensor) -> tuple[Tensor, Tensor]:
    """Key blocks that a block of queries sees at all, and as a whole: (B, N, N) each."""
    count = -(-starts.shape[1] // _BLOCK)
    rest = starts[:, -1:].expand(-1, count * _BLOCK - starts.shape[1])
    by_block = torch.cat([starts, rest], 1).unflatten(1, (count, _BLOCK))
    first = by_block.amin(2, keepdim=True) // _BLOCK
    whole = -(-by_block.amax(2, keepdim=True) // _BLOCK)
    keys = torch.arange(count, device=starts.device)
    own = keys[:, None]
    return (keys >= first) & (keys <= own), (keys >= whole) & (keys < own)


def _forked_blocks(forks: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """As :func:`_blocks`, of rows that fork: (B, N, N) each."""
    begin = torch.arange(0, places, _BLOCK, device=forks.device)
    end = begin + _BLOCK
    own, keys = begin[:, None], begin
    first, second = forks[:, :1, None], forks[:, 1:, None]
    apart = (own >= second) & (keys >= first) & (end <= second)
    touched = (own + _BLOCK > second) & (end > first) & (keys < second)
    return (keys <= own) & ~apart, (keys < own) & ~touched


def _block_mask(seen: Tensor, full: Tensor, places: int, mask: Any) -> BlockMask:
    counts, orders = zip(*map(_listed, (seen & ~full, full)), strict=True)
    return BlockMask.from_kv_blocks(
        counts[0], orders[0], counts[1], orders[1],
        BLOCK_SIZE=_BLOCK, mask_mod=mask, seq_lengths=(places, places),
    )  # fmt: skip


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Flags (B, N, N) as counts (B, 1, N) and numbers (B, 1, N, N), those that count first."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1)[:, None].int(), order[:, None].int()


def _left_padding(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """Padded places before each row's first real one, (B, 1)."""
    if mask.shape != shape:
        raise ValueError(f"attention_mask has the shape {tuple(mask.shape)}, not {shape}")
    real = mask.bool()
    begins = real & ~F.pad(real, (1, 0))[:, :-1]
    if bool((begins.sum(1) > 1).any()):
        raise ValueError("attention_mask has padding inside a row: pad on the left or the right")
    return (real.cumsum(1) == 0).sum(1, keepdim=True)
