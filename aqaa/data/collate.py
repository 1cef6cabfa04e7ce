"""Encoded documents side by side, padded, or one after another in packed rows.

Letters: B rows, T ids.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class TokenBatch(NamedTuple):
    """``input_ids`` (B, T) right-padded, ``targets`` and ``slots`` (B, T) of the next id.

    ``sources`` (B, T) is the place of each position's source in the mixture, -1 in padding.
    ``position_ids`` (B, T) restart at 0 with every document of a packed row; None where a row is
    one document.
    ``share`` is what the loss of this batch counts for in its optimizer step: 1 on average.
    """

    task: str
    input_ids: Tensor
    targets: Tensor
    slots: Tensor
    sources: Tensor
    position_ids: Tensor | None = None
    share: float = 1.0


class Document(NamedTuple):
    """``ids`` (n + 1,) and ``slots`` (n + 1,), of which n are read and n are to be learnt."""

    source: int
    ids: np.ndarray
    slots: np.ndarray


def padded(task: str, documents: Sequence[Document], *, pad: int) -> TokenBatch:
    """One document a row, padded on the right to the longest."""
    longest = max(len(document.ids) for document in documents) - 1
    return _batch(task, [[document] for document in documents], longest, pad)._replace(
        position_ids=None
    )


def packed(rows: Sequence[Sequence[Document]], row_tokens: int, *, pad: int) -> TokenBatch:
    """Rows of ``row_tokens`` ids, each of several documents; what is left over is one of padding.

    Raises:
        ValueError: documents of a row have more ids than it.
    """
    return _batch("packed", rows, row_tokens, pad)


def _batch(task: str, rows: Sequence[Sequence[Document]], width: int, pad: int) -> TokenBatch:
    inputs = np.full((len(rows), width), pad, np.int64)
    targets = inputs.copy()
    slots, positions = np.zeros_like(inputs), np.zeros_like(inputs)
    sources = np.full_like(inputs, -1)
    for row, documents in enumerate(rows):
        end = 0
        for document in documents:
            begin, end = end, end + len(document.ids) - 1
            if end > width:
                raise ValueError(f"documents of row {row} have more than its {width} ids")
            here = (row, slice(begin, end))
            inputs[here], targets[here] = document.ids[:-1], document.ids[1:]
            slots[here], sources[here] = document.slots[1:], document.source
            positions[here] = np.arange(end - begin)
        positions[row, end:] = np.arange(width - end)
    arrays = (inputs, targets, slots, sources, positions)
    return TokenBatch._make((task, *map(torch.from_numpy, arrays), 1.0))
