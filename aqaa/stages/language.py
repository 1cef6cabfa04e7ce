"""What the stages of the backbone share: the loss over a batch and its figures.

Letters: B sequences, T ids, N supervised positions, W width.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from aqaa.backbone.head import LossHead
from aqaa.backbone.loading import Backbone, load_backbone
from aqaa.backbone.lora import Lora
from aqaa.data.collate import TokenBatch
from aqaa.errors import UsageError
from aqaa.losses.next_token import SlotTable, TokenLoss
from aqaa.losses.tally import TOTALS, figures, tally
from aqaa.ranks import total
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.storage import Gather, in_place
from aqaa.stream import Slot
from aqaa.vocabulary import TOKEN_TYPES

# Weight of a position by what it decides: few text ids carry the meaning, many audio ids the sound.
SLOT_WEIGHTS = {"text": 3.0, "linguistic": 1.0, "semantic": 0.7, "after": 1.0}
Normalise = Literal["slot", "table"]


def weights_by_slot(weights: Mapping[str, float], normalise: Normalise) -> dict[Slot, float]:
    """The weight of every slot that is learnt; one left out carries no loss.

    Over the whole table the id that a layout forces is learnt too, with the weight of ``after``:
    Eq. 1 has a term for every id of the answer, and only a grammar makes this one certain.
    """
    if normalise not in get_args(Normalise):
        raise UsageError(f"normalise={normalise} is neither {' nor '.join(get_args(Normalise))}")
    names = {slot: slot.name.lower() for slot in Slot}
    if normalise == "table":
        names[Slot.FORCED] = "after"
    return {slot: weights[name] for slot, name in names.items() if name in weights}


def weight_of_slots(slots: Tensor, weights: Mapping[Slot, float]) -> float:
    """What a mean loss over ``slots`` (B, T) is divided by: the weights of all its positions."""
    counts = torch.bincount(slots.flatten(), minlength=max(Slot) + 1).tolist()
    return sum(weight * counts[slot] for slot, weight in weights.items())


def slot_tables(
    backbone: Backbone, weights: Mapping[str, float], normalise: Normalise = "slot"
) -> dict[int, SlotTable]:
    """The rows each slot that is learnt is normalised over, with its weight."""
    layout, vocabulary = backbone.ids.layout, backbone.ids.vocabulary
    found = {}
    for slot, weight in weights_by_slot(weights, normalise).items():
        ids = None if normalise == "table" else layout.slot_ids(slot, vocabulary)
        found[int(slot)] = SlotTable.build(slot.name.lower(), ids, vocabulary.rows, weight)
    return found


def prepared(
    backbone: Backbone, adapter: Lora | Mapping[str, Any] | None, activation_checkpointing: bool
) -> Backbone:
    """A loaded backbone made ready to train; an empty mapping is no adapter."""
    if activation_checkpointing:
        backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
    return adapter.wrap(backbone) if isinstance(adapter, Lora) else backbone


def keep_frozen(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Complete a state that is about to be loaded: what is not trained stays as the parent has it.

    A sharded run saves what it trains; which model it started from is checked before.
    """
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            state.setdefault(name, tensor.detach())


class LanguageModel(pl.LightningModule):
    """A backbone under next-token training (paper Eq. 1); its weights may be sharded.

    Args:
        model: folder of the backbone to start from.
        optimizer: settings.
        adapter: train this around the frozen backbone (nothing: train every weight).
        activation_checkpointing: keep each layer's input only and compute it again on the way back.
        slot_weights: weight of the loss of text, linguistic, semantic and after (ours; the paper
            weighs every id alike).
        normalise: over the ``slot`` of a position (ours) or the whole ``table`` (Eq. 1).
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
        normalise: Normalise = "slot",
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
        self._normalise: Normalise = normalise
        self.deepspeed: dict[str, Any] | None = None  # the engine's settings, if it shards weights
        self.decoder: Any = None
        self.head: Any = None
        self._backbone: Backbone | None = None
        self._tables: dict[int, SlotTable] = {}
        self._sources: tuple[str, ...] = ()
        self._seen: Tensor | None = None
        self._read: Tensor | None = None

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
        self._tables = slot_tables(self._backbone, self._slot_weights, self._normalise)
        self.head = LossHead(table=self._backbone.table, tables=self._tables)
        source = self.trainer.datamodule.source  # type: ignore[attr-defined]
        source.bind(self._backbone.ids)
        self._sources = tuple(source.names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up a run; see :func:`keep_frozen`."""
        keep_frozen(self, checkpoint["state_dict"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW on the backbone."""
        steps = int(self.trainer.estimated_stepping_batches)
        first_new_row = self.backbone.ids.vocabulary.linguistic_start
        return self._optimizer.build(self.decoder, steps, first_new_row=first_new_row)

    def weight_of(self, batch: TokenBatch) -> float:
        """What the loss of a batch is a mean over."""
        return weight_of_slots(batch.slots, weights_by_slot(self._slot_weights, self._normalise))

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Loss of one batch by its share of the step, so that a step's mean is over its positions.

        Figures are made for the steps that are logged, over all ranks, and know no shares.
        """
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = (self.global_step + 1) % every == 0
        loss = self._loss(batch, count=due)
        if due and (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self._log("train")
        return loss * batch.share

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Loss on voices never trained, by kind of id and by task."""
        extra = self.trainer.datamodule.is_extra(batch_idx)  # type: ignore[attr-defined]
        self._loss(batch, count=not extra)

    def on_validation_epoch_end(self) -> None:
        """Log what the check saw: means over its positions, however they were batched."""
        self._log("validation")

    def _loss(self, batch: TokenBatch, *, count: bool) -> Tensor:
        more = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
        hidden = self.backbone.hidden(batch.input_ids, use_cache=False, **more).last_hidden_state
        # The head works on the supervised rows alone; logits of the others never exist. A batch
        # waits for the device twice: here for their number, in the loss for that of each slot.
        learnt = torch.stack([batch.slots == slot for slot in self._tables]).any(0)
        at = learnt.nonzero(as_tuple=True)
        targets = batch.targets[at]
        found: TokenLoss = self.head(hidden[at], targets, batch.slots[at])
        if count:
            tasks = batch.sources[at] + len(TOKEN_TYPES)
            names = len(TOKEN_TYPES) + len(self._sources)
            seen = tally(found, self._kinds(targets), tasks, size=names)
            self._seen = seen if self._seen is None else self._seen + seen
            read = self._ids_read(batch.sources)
            self._read = read if self._read is None else self._read + read
        return found.loss

    def _kinds(self, targets: Tensor) -> Tensor:
        """Where ids (N,) stand in ``TOKEN_TYPES``."""
        v = self.backbone.ids.vocabulary
        starts = torch.tensor([v.linguistic_start, v.semantic_start, v.marker_start])
        return torch.bucketize(targets, starts.to(targets.device), right=True)

    def _ids_read(self, sources: Tensor) -> Tensor:
        """How many ids (S,) of each source stand in ``sources`` (B, T), padding left out."""
        counts = torch.zeros(len(self._sources) + 1, dtype=torch.float64, device=sources.device)
        one = torch.ones((), dtype=torch.float64, device=sources.device)
        places = sources.flatten() + 1
        return counts.index_add_(0, places, one.expand(len(places)))[1:]

    def _log(self, split: str) -> None:
        """Log the sums since the last time, of all ranks; the only place that waits for them."""
        names = (*TOKEN_TYPES, *self._sources)
        seen, read = self._seen, self._read
        if seen is None or read is None:  # a rank that had nothing to count
            zeros = partial(torch.zeros, dtype=torch.float64, device=self.device)
            seen, read = zeros(len(names), len(TOTALS)), zeros(len(self._sources))
        self._seen = self._read = None
        found = figures(split, total(seen).tolist(), names, kinds=len(TOKEN_TYPES))
        counts = zip(self._sources, total(read).tolist(), strict=True)
        self.log_dict(found | {f"{split}/{name}_tokens": n for name, n in counts if n})

    def export(self, folder: Path, gather: Gather = in_place) -> None:
        """Write the backbone folder, on the rank that keeps what is gathered."""
        self.backbone.save(folder, gather=gather)
