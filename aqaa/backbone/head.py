"""The output head under a loss: it holds the table, the loss works through it in slices.

Letters: N supervised positions, W width, V table rows.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aqaa.losses.next_token import SlotTable, TokenLoss, next_token, token_log_probs


class LossHead(nn.Module):
    """Next-token loss over the rows each slot is normalised over.

    It holds the table itself, because ZeRO-3 makes a parameter whole while the module that owns it
    runs, and only then. The decoder owns the same tensor and saves it; here it is not saved.

    Args:
        table: output rows (V, W), a parameter of the decoder.
        tables: slot -> its rows and weight.
    """

    def __init__(self, *, table: nn.Parameter, tables: Mapping[int, SlotTable]) -> None:
        super().__init__()
        self.table = table
        self._tables = dict(tables)

    def forward(self, hidden: Tensor, targets: Tensor, slots: Tensor) -> TokenLoss:
        """States (N, W), ids (N,) and slots (N,) to the loss and its parts."""
        hidden = self._ready(hidden)
        return next_token(hidden, self.table, targets, slots, self._tables)

    def _ready(self, hidden: Tensor) -> Tensor:
        """Hidden states in the precision of the products, and the rows beside them."""
        self._tables = {slot: entry.to(hidden.device) for slot, entry in self._tables.items()}
        device = hidden.device.type
        half = not hidden.is_meta and torch.is_autocast_enabled(device)
        return hidden.to(torch.get_autocast_dtype(device)) if half else hidden

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Nothing: the decoder saves the table."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Nothing: the decoder loads the table."""


class ScoreHead(LossHead):
    """The log-probabilities themselves."""

    def forward(self, hidden: Tensor, targets: Tensor, slots: Tensor) -> Tensor:  # type: ignore[override]
        """States (N, W), ids (N,) and slots (N,) to (N,) log-probabilities."""
        hidden = self._ready(hidden)
        return token_log_probs(hidden, self.table, targets, slots, self._tables)
