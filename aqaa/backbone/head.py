"""The output head as a module that holds the table itself.

ZeRO-3 makes a parameter whole while the module that owns it runs, and only then.
Letters: N supervised positions, W width.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from aqaa.losses.next_token import SlotTable, TokenLoss, next_token, token_log_probs


class LossHead(nn.Module):
    """Next-token loss and log-probabilities over the rows of each slot.

    Args:
        table: the output rows, shared with the model.
        tables: slot -> its rows and weight.
    """

    def __init__(self, *, table: nn.Parameter, tables: Mapping[int, SlotTable]) -> None:
        super().__init__()
        self.table = table
        self._tables = dict(tables)

    def forward(self, hidden: Tensor, targets: Tensor, slots: Tensor) -> TokenLoss:
        """States (N, W), ids (N,) and slots (N,) to the loss and its parts."""
        return next_token(hidden, self.table, targets, slots, self._tables)


class ScoreHead(LossHead):
    """The log-probabilities themselves."""

    def forward(self, hidden: Tensor, targets: Tensor, slots: Tensor) -> Tensor:  # type: ignore[override]
        """States (N, W), ids (N,) and slots (N,) to (N,) log-probabilities."""
        return token_log_probs(hidden, self.table, targets, slots, self._tables)
