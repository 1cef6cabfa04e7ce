"""Whole documents in rows of a fixed number of ids, packed once; each epoch has its own order.

What is in a row never changes, so the rows of an epoch are as many in every epoch, and any step's
rows are found by counting.
"""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np

# Documents of so many rows are packed together: the one row left half empty then costs 0.2 %.
_WINDOW_ROWS = 256
# The shortest documents come last and fill the gaps; the others come as they are shuffled. Were all
# of them sorted, rows would be fuller by half a per cent, but each would hold one kind of task.
_FILLERS_SHARE = 0.3


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Put documents into rows of ``room``, one by one, each where least room is left over.

    Args:
        lengths: of the documents in the order they come, each at most ``room``.
        room: of a row.

    Returns:
        For every row the places of its documents in ``lengths``.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for place, length in enumerate(lengths):
        if not 0 < length <= room:
            raise ValueError(f"a document of {length} ids does not fit a row of {room}")
        at = bisect_left(free, (length, -1))
        if at < len(free):
            left, row = free.pop(at)
            rows[row].append(place)
        else:
            left, row = room, len(rows)
            rows.append([place])
        if left > length:
            insort(free, (left - length, row))
    return rows


@dataclass(frozen=True, eq=False)
class Packing:
    """Rows of documents; which documents a row has is a pure function of (seed, its number).

    Args:
        packed: documents of all rows, one row after another, int64 (documents,).
        ends: where each row begins in ``packed``, and the end, int64 (rows + 1,).
        seed: decides the order of the rows in each epoch.
    """

    packed: np.ndarray
    ends: np.ndarray
    seed: int

    @property
    def rows(self) -> int:
        """How many an epoch has."""
        return len(self.ends) - 1

    def documents(self, number: int) -> list[int]:
        """Documents of row ``number``, counted from zero over all epochs."""
        epoch, turn = divmod(number, self.rows)
        row = _order(self.seed, self.rows, epoch)[turn]
        return self.packed[self.ends[row] : self.ends[row + 1]].tolist()


@lru_cache(maxsize=4)
def _order(seed: int, rows: int, epoch: int) -> np.ndarray:
    """The rows of an epoch in their order; it depends on nothing else and may be shared."""
    return np.random.default_rng([seed, rows, epoch]).permutation(rows)


def pack(lengths: Sequence[int] | np.ndarray, *, row_tokens: int, seed: int) -> Packing:
    """Pack documents into rows.

    Args:
        lengths: ids of every document.
        row_tokens: ids of a row.
        seed: decides which documents meet, and the order of the rows in each epoch.
    """
    order = np.random.default_rng([seed, len(lengths)]).permutation(len(lengths))
    sizes = np.asarray(lengths, np.int64)[order]
    window = np.cumsum(sizes) // (_WINDOW_ROWS * row_tokens)
    window = np.minimum(window, max(0, window[-1] - 1))  # the last one is not whole
    packed, counts = [], [0]
    for piece in np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(window)) + 1):
        piece = piece[_gap_fillers_last(sizes[piece])]
        rows = best_fit(sizes[piece].tolist(), row_tokens)
        packed += [order[piece[list(chain.from_iterable(rows))]]]
        counts += [len(row) for row in rows]
    # Flat arrays, 16 bytes a document at most: lists of lists would take several times that.
    return Packing(np.concatenate(packed), np.cumsum(counts), seed)


def _gap_fillers_last(sizes: np.ndarray) -> np.ndarray:
    """Places of documents: the longer ones as they come, then the shortest, the longest first."""
    fills = sizes <= np.quantile(sizes, _FILLERS_SHARE)
    return np.argsort(np.where(fills, -sizes, -np.inf), kind="stable")


class Documents(NamedTuple):
    """Documents of one epoch, by number: the source, an index of ``names``, and the place in it.

    ``names`` (sources,), ``sources`` int16 and ``places`` int64 (documents,).
    """

    names: tuple[str, ...]
    sources: np.ndarray
    places: np.ndarray

    def at(self, number: int) -> tuple[str, int]:
        """Source and place of a document."""
        return self.names[self.sources[number]], int(self.places[number])

    def sizes(self, lengths: Mapping[str, Sequence[int] | np.ndarray]) -> np.ndarray:
        """Ids of each document, from those of each source's: (n,)."""
        found = np.empty(len(self.places), np.int64)
        for number, name in enumerate(self.names):
            of = self.sources == number
            found[of] = np.asarray(lengths[name])[self.places[of]]
        return found


def mixture(
    shares: Mapping[str, float], lengths: Mapping[str, Sequence[int] | np.ndarray], seed: int
) -> Documents:
    """Documents of one epoch, so that each source has its share of the ids.

    The source that would last longest comes once; the others are repeated, the last time in part.

    Args:
        shares: of the ids, relative to the other sources.
        lengths: by source, ids of its documents.
        seed: decides which documents come once more.
    """
    wanted = {
        name: share / int(np.sum(lengths[name], dtype=np.int64))
        for name, share in shares.items()
        if share > 0
    }
    least = min(wanted.values())
    sources, places = [], []
    for number, (name, rate) in enumerate(wanted.items()):
        size = len(lengths[name])
        again = np.random.default_rng([seed, number, size]).permutation(size)
        whole, part = divmod(rate / least, 1)
        places += [*[np.arange(size)] * int(whole), again[: round(part * size)]]
        sources.append(np.full(int(whole) * size + round(part * size), number, np.int16))
    return Documents(tuple(wanted), np.concatenate(sources), np.concatenate(places))
