"""Next-token cross-entropy, normalised over the rows each position is decided over.

Letters: N supervised positions, D width, V rows of the table, S rows of a slot.
Over a slot's rows (ours) the loss is the one that decoding under the layout's grammar sees, and
costs half as much at tiny sizes; over the whole table it is the paper's Eq. 1.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aqaa.losses.sliced import SLICE_NUMBERS, Group, MeanNats, Nats


class TokenLoss(NamedTuple):
    """``loss`` scalar; the rest (N,), in float32 (of doubles float64), and detached.

    ``nats``, ``entropy`` of the prediction and ``correct`` (0 or 1) of each position, and the
    ``weight`` it has in the loss; all zero where a slot has no table. A tuple, because DeepSpeed
    looks for a module's output tensors in tuples and dicts alone.
    """

    loss: Tensor
    nats: Tensor
    entropy: Tensor
    correct: Tensor
    weight: Tensor


@dataclass(frozen=True)
class SlotTable:
    """Rows of the output table that one slot is normalised over.

    ``rows`` (S,) ids and ``position`` (V,), the index of an id in ``rows`` or -1; both None where
    the slot is normalised over the whole table.
    """

    name: str
    rows: Tensor | None
    position: Tensor | None
    weight: float

    @classmethod
    def build(
        cls, name: str, rows: Iterable[int] | None, table_rows: int, weight: float
    ) -> "SlotTable":
        """Index ``rows`` of a table with ``table_rows`` rows; ``weight`` scales its loss."""
        if rows is None:
            return cls(name, None, None, weight)
        index = torch.tensor(list(rows), dtype=torch.long)
        position = torch.full((table_rows,), -1, dtype=torch.long)
        position[index] = torch.arange(len(index))
        return cls(name, index, position, weight)

    def to(self, device: torch.device) -> "SlotTable":
        """The same on another device."""
        if self.rows is None or self.position is None or self.rows.device == device:
            return self
        return replace(self, rows=self.rows.to(device), position=self.position.to(device))

    def labels(self, targets: Tensor) -> Tensor:
        """Where ids (N,) stand among the rows; ValueError for one that does not.

        Only looked at where that costs no wait: on a GPU such a label stops the gather after it.
        """
        labels = targets if self.position is None else self.position[targets]
        if labels.device.type == "cpu" and bool((labels < 0).any()):
            wrong = targets[labels < 0][0].item()
            raise ValueError(f"target id {wrong} is not among the rows of slot {self.name}")
        return labels


def next_token(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    slots: Tensor,
    tables: dict[int, SlotTable],
    *,
    slice_numbers: int = SLICE_NUMBERS,
) -> TokenLoss:
    """Weighted mean cross-entropy of the supervised positions.

    Args:
        hidden: (N, D) output of the backbone before the head.
        table: (V, D) output rows.
        targets: (N,) ids.
        slots: (N,) slot of each target; slots without a table are skipped.
        tables: slot -> its rows and weight.
        slice_numbers: logits alive at a time.

    Returns:
        The loss sum(w * nats) / sum(w), and its parts by position.
    """
    groups = _groups(targets, slots, tables)
    weight = torch.zeros(len(slots), dtype=torch.float32, device=slots.device)
    for slot, entry in tables.items():
        weight = weight.masked_fill(slots == slot, entry.weight)
    # Gradients are made in the forward pass, so it must know whether there will be a backward one.
    learns = torch.is_grad_enabled()
    wanted = (learns and hidden.requires_grad, learns and table.requires_grad)
    coefficient = weight / weight.sum().clamp_min(1e-9)
    with _as_given(hidden):
        parts = MeanNats.apply(hidden, table, coefficient, groups, wanted, slice_numbers)
    loss, nats, entropy, correct = parts
    return TokenLoss(loss, nats, entropy, correct, weight)


def token_log_probs(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    slots: Tensor,
    tables: dict[int, SlotTable],
    *,
    slice_numbers: int = SLICE_NUMBERS,
) -> Tensor:
    """Log-probability of each target under its slot's rows.

    Arguments as of :func:`next_token`; (N,) float32, of doubles float64, zero where a slot has no
    table.
    """
    groups = _groups(targets, slots, tables)
    with _as_given(hidden):
        nats: Tensor = Nats.apply(hidden, table, groups, torch.is_grad_enabled(), slice_numbers)
    return -nats


def _as_given(hidden: Tensor) -> AbstractContextManager[Any]:
    """No precision but the tensors' own; the meta device knows no other."""
    return nullcontext() if hidden.is_meta else torch.autocast(hidden.device.type, enabled=False)


def _groups(targets: Tensor, slots: Tensor, tables: dict[int, SlotTable]) -> list[Group]:
    """The positions of each slot; slots over the whole table are one group."""
    # One sort and one wait for the counts, rather than a wait for every slot.
    order = slots.argsort(stable=True)
    most = max([*tables, 0]) + 1
    counts = torch.bincount(slots, minlength=most).tolist()
    places = dict(enumerate(order.split(counts)))
    whole = [places[slot] for slot, entry in tables.items() if entry.rows is None]
    found = [
        Group(places[slot], entry.rows, entry.labels(targets[places[slot]]))
        for slot, entry in tables.items()
        if entry.rows is not None and len(places[slot])
    ]
    if whole and len(together := torch.cat(whole)):
        found.append(Group(together, None, targets[together]))
    return found
