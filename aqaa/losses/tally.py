"""Sums of a loss by kind of id and by task, kept where the loss is until they are wanted.

Letters: N positions, K rows of the tally.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from aqaa.losses.next_token import TokenLoss

# What each row of a tally sums over its positions.
TOTALS = ("count", "nats", "entropy", "correct", "weight", "weighted_nats")


def tally(found: TokenLoss, *rows: Tensor, size: int) -> Tensor:
    """Sums (size, 6), columns as ``TOTALS``, of the positions in each row.

    Args:
        found: figures by position.
        rows: each (N,), the row a position is added to; several, where it counts in several.
        size: rows of the tally.
    """
    columns = torch.stack(
        [
            torch.ones_like(found.nats),
            found.nats,
            found.entropy,
            found.correct,
            found.weight,
            found.weight * found.nats,
        ],
        1,
    ).double()
    total = torch.zeros(size, len(TOTALS), dtype=torch.float64, device=columns.device)
    for row in rows:
        total.index_add_(0, row, columns)
    return total


def figures(
    split: str, sums: Sequence[Sequence[float]], names: Sequence[str], *, kinds: int
) -> dict[str, float]:
    """What a log shows of a tally, named ``split/...``.

    The first ``kinds`` rows are kinds of id, which every position is in once: of these loss,
    entropy and accuracy, each a plain mean. The other rows are tasks: of these the weighted loss,
    as of the whole. Rows without a position are left out.
    """
    out = {}
    nats, weight = 0.0, 0.0
    for place, (name, row) in enumerate(zip(names, sums, strict=True)):
        count, *_, row_weight, row_nats = row
        if place < kinds:
            nats, weight = nats + row_nats, weight + row_weight
        if not count:
            continue
        if place < kinds:
            for figure, total in zip(("loss", "entropy", "accuracy"), row[1:4], strict=True):
                out[f"{split}/{name}_{figure}"] = total / count
        elif row_weight:
            out[f"{split}/{name}"] = row_nats / row_weight
    return {f"{split}/loss": nats / weight if weight else 0.0, **out}
