"""What the stages of the backbone share: the loss over a batch and its figures by kind of id.

Letters: B sequences, T ids, N supervised positions, W width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from aqaa.backbone.head import LossHead
from aqaa.backbone.loading import Backbone, load_backbone
from aqaa.backbone.lora import Lora
from aqaa.data.dialogues import TokenBatch
from aqaa.errors import UsageError
from aqaa.losses.next_token import SlotTable, TokenLoss
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.storage import Gather, in_place
from aqaa.stream import Slot

# Weight of a position by what it decides: few text ids carry the meaning, many audio ids the sound.
SLOT_WEIGHTS = {"text": 3.0, "linguistic": 1.0, "semantic": 0.7, "after": 1.0}


def slot_tables(backbone: Backbone, weights: Mapping[str, float]) -> dict[int, SlotTable]:
    """The rows each slot is normalised over, with its weight; a slot left out carries no loss."""
    rows = backbone.ids.vocabulary.rows
    ids = backbone.ids
    return {
        int(slot): SlotTable.build(
            slot.name.lower(),
            ids.layout.slot_ids(slot, ids.vocabulary),
            rows,
            weights[slot.name.lower()],
        )
        for slot in Slot
        if slot.name.lower() in weights
    }


def supervised(backbone: Backbone, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (N, W), targets (N,) and slots (N,) of the positions that carry loss.

    The head then works on these rows alone; logits of the others never exist.
    """
    hidden = backbone.hidden(batch.input_ids).last_hidden_state
    chosen = (batch.slots != Slot.NONE) & (batch.slots != Slot.FORCED)
    return hidden[chosen], batch.targets[chosen], batch.slots[chosen]


def prepared(
    backbone: Backbone, adapter: Lora | Mapping[str, Any] | None, activation_checkpointing: bool
) -> Backbone:
    """A loaded backbone made ready to train; an empty mapping is no adapter."""
    if activation_checkpointing:
        backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
    return adapter.wrap(backbone) if isinstance(adapter, Lora) else backbone


class LanguageModel(pl.LightningModule):
    """A backbone under next-token training (paper Eq. 1); its weights may be sharded.

    Args:
        model: folder of the backbone to start from.
        optimizer: settings.
        adapter: train this around the frozen backbone (nothing: train every weight).
        activation_checkpointing: keep each layer's input only and compute it again on the way back.
        slot_weights: weight of the loss of text, linguistic, semantic and after (ours; the paper
            weighs every id alike).
    """

    sharded = True

    def __init__(
        self,
        *,
        model: str,
        optimizer: OptimizerSettings,
        adapter: Lora | Mapping[str, Any] | None = None,
        activation_checkpointing: bool = False,
        slot_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self._folder = model
        self._optimizer = optimizer
        self._adapter = adapter
        self._checkpointing = activation_checkpointing
        self._slot_weights = dict(SLOT_WEIGHTS if slot_weights is None else slot_weights)
        if set(self._slot_weights) != set(SLOT_WEIGHTS):
            raise UsageError(
                f"slot_weights names {', '.join(sorted(self._slot_weights)) or 'nothing'}: it must "
                f"name {', '.join(SLOT_WEIGHTS)}, each once (0 for no loss)"
            )
        self.deepspeed: dict[str, Any] | None = None  # the engine's settings, if it shards weights
        self.decoder: Any = None
        self.head: Any = None
        self._backbone: Backbone | None = None

    @property
    def backbone(self) -> Backbone:
        """The backbone, once loaded."""
        assert self._backbone is not None, "configure_model comes first"
        return self._backbone

    def configure_model(self) -> None:
        """Load the backbone and tell the data its ids; nothing on a second call."""
        if self._backbone is not None:
            return
        backbone = load_backbone(self._folder, deepspeed=self.deepspeed)
        self._backbone = prepared(backbone, self._adapter, self._checkpointing)
        self.decoder = self._backbone.model.train()
        tables = slot_tables(self._backbone, self._slot_weights)
        self.head = LossHead(table=self._backbone.table, tables=tables)
        self.trainer.datamodule.source.bind(self._backbone.ids)  # type: ignore[attr-defined]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW on the backbone."""
        steps = int(self.trainer.estimated_stepping_batches)
        return self._optimizer.build(self.decoder, steps)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        found = self._loss(batch)
        self._log("train", found, {f"train/{batch.task}": found.loss.detach()})
        return found.loss

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Loss on voices never trained, by kind of id and by task."""
        found = self._loss(batch)
        self._log("validation", found, {f"validation/{batch.task}": found.loss.detach()})

    def _loss(self, batch: TokenBatch) -> TokenLoss:
        found: TokenLoss = self.head(*supervised(self.backbone, batch))
        return found

    def _log(self, split: str, found: TokenLoss, more: dict[str, Tensor]) -> None:
        self.log_dict({f"{split}/loss": found.loss.detach(), **more}, batch_size=1)
        for name, count in found.counts.items():
            values = {f"{split}/{name}_loss": found.sums[name] / count}
            if split == "validation":
                values[f"{split}/{name}_accuracy"] = torch.tensor(found.correct[name] / count)
            self.log_dict(values, batch_size=count)

    def export(self, folder: Path, gather: Gather = in_place) -> None:
        """Write the backbone folder, on the rank that keeps what is gathered."""
        self.backbone.save(folder, gather=gather)
