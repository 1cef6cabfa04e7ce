"""Next-token cross-entropy, normalised over the slot each position is decided in.

Letters: N supervised positions, D width, V rows of the table, S rows of a slot.
The paper's Eq. 1 normalises over the whole table, which is not offered here. Over a slot's rows the
loss is the one that decoding under the layout's grammar sees, and costs half as much at tiny sizes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class TokenLoss(NamedTuple):
    """``loss`` scalar; ``sums`` and ``counts`` per slot name (nats and positions), detached.

    A tuple, because DeepSpeed looks for a module's output tensors in tuples and dicts alone.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    counts: dict[str, int]
    correct: dict[str, int]


@dataclass(frozen=True)
class SlotTable:
    """Rows of the output table that one slot is normalised over.

    ``rows`` (S,) ids; ``position`` (V,) index of an id in ``rows`` or -1.
    """

    name: str
    rows: Tensor
    position: Tensor
    weight: float

    @classmethod
    def build(cls, name: str, rows: list[int], table_rows: int, weight: float) -> "SlotTable":
        """Index ``rows`` of a table with ``table_rows`` rows; ``weight`` scales its loss."""
        index = torch.tensor(rows, dtype=torch.long)
        position = torch.full((table_rows,), -1, dtype=torch.long)
        position[index] = torch.arange(len(rows))
        return cls(name, index, position, weight)

    def labels(self, targets: Tensor) -> Tensor:
        """Where ids (N,) stand among the rows; ValueError for one that does not."""
        labels = self.position.to(targets.device)[targets]
        if bool((labels < 0).any()):
            wrong = targets[labels < 0][0].item()
            raise ValueError(f"target id {wrong} is not among the rows of slot {self.name}")
        return labels


def next_token(
    hidden: Tensor, table: Tensor, targets: Tensor, slots: Tensor, tables: dict[int, SlotTable]
) -> TokenLoss:
    """Weighted mean cross-entropy of the supervised positions.

    Args:
        hidden: (N, D) output of the backbone before the head.
        table: (V, D) output rows.
        targets: (N,) ids.
        slots: (N,) slot of each target; slots without a table are skipped.
        tables: slot -> its rows and weight.

    Returns:
        The loss sum_s w_s * sum_nll_s / sum_s w_s * n_s, and its parts by slot.
    """
    total = hidden.new_zeros(())
    weight = 0.0
    sums, counts, correct = {}, {}, {}
    for slot, entry in tables.items():
        here = (slots == slot).nonzero()[:, 0]
        if not len(here):
            continue
        labels = entry.labels(targets[here])
        logits = hidden[here] @ table[entry.rows].T
        nll = F.cross_entropy(logits.float(), labels, reduction="sum")
        total = total + entry.weight * nll
        weight += entry.weight * len(here)
        sums[entry.name] = nll.detach()
        counts[entry.name] = len(here)
        correct[entry.name] = int((logits.argmax(-1) == labels).sum())
    return TokenLoss(total / max(weight, 1e-9), sums, counts, correct)


def token_log_probs(
    hidden: Tensor, table: Tensor, targets: Tensor, slots: Tensor, tables: dict[int, SlotTable]
) -> Tensor:
    """Log-probability of each target under its slot's rows.

    Arguments as of :func:`next_token`; (N,) float32, zero where a slot has no table.
    """
    out = hidden.new_zeros(len(targets), dtype=torch.float32)
    for slot, entry in tables.items():
        here = (slots == slot).nonzero()[:, 0]
        if len(here):
            logits = hidden[here] @ table[entry.rows].T
            labels = entry.labels(targets[here])
            picked = logits.float().log_softmax(-1).gather(1, labels[:, None])[:, 0]
            out = out.index_put((here,), picked)
    return out
