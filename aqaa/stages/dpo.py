"""Preference optimisation with audio ids and markers masked out (paper 3.3, Eq. 2), from SFT 1.

Letters: B pairs (2B answers), T ids.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from aqaa.backbone.head import ScoreHead
from aqaa.backbone.loading import Backbone, load_backbone
from aqaa.backbone.lora import Lora
from aqaa.data.preferences import PreferenceBatch, PreferenceBatches
from aqaa.losses.masked_dpo import DpoLoss, answer_scores, masked_dpo
from aqaa.ranks import from_first, rank, ranks, total
from aqaa.stages.language import SLOT_WEIGHTS, Normalise, keep_frozen, prepared, slot_tables
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.storage import (
    Gather,
    content_hash,
    in_place,
    load_tensors,
    save_tensors,
    tree_hash,
)

_REFERENCE_BATCH = 8


class Dpo(pl.LightningModule):
    """Direct preference optimisation of a backbone.

    Args:
        model: folder of the backbone to start from; its frozen scores are the reference.
        optimizer: settings.
        adapter: train this around the frozen backbone (nothing: train every weight).
        activation_checkpointing: keep each layer's input only and compute it again on the way back.
        beta: strength of the implied penalty (the paper names none; 0.1 is the usual value).
        scores: file that keeps the reference scores, computed once.
        normalise: log-probabilities over the ``slot`` of a position (ours) or the whole ``table``.
    """

    sharded = True

    def __init__(
        self,
        *,
        model: str,
        optimizer: OptimizerSettings,
        adapter: Lora | Mapping[str, Any] | None = None,
        activation_checkpointing: bool = False,
        beta: float = 0.1,
        scores: str,
        normalise: Normalise = "slot",
    ) -> None:
        super().__init__()
        self._folder = Path(model)
        self._optimizer = optimizer
        self._adapter = adapter
        self._checkpointing = activation_checkpointing
        self._beta = beta
        self._scores_file = Path(scores)
        self._normalise: Normalise = normalise
        self.deepspeed: dict[str, Any] | None = None  # the engine's settings, if it shards weights
        self.decoder: Any = None
        self.head: Any = None
        self._backbone: Backbone | None = None
        self._reference: Tensor | None = None

    @property
    def backbone(self) -> Backbone:
        """The backbone, once loaded."""
        assert self._backbone is not None, "configure_model comes first"
        return self._backbone

    def configure_model(self) -> None:
        """Load the backbone and the reference scores; nothing on a second call."""
        if self._backbone is not None:
            return
        self._backbone = load_backbone(self._folder, deepspeed=self.deepspeed)
        self.decoder = self._backbone.model
        tables = slot_tables(self._backbone, SLOT_WEIGHTS, self._normalise)
        self.head = ScoreHead(table=self._backbone.table, tables=tables)
        self._source.bind(self._backbone.ids)
        if self.deepspeed is None:
            self._reference = self._reference_scores(self._source)
        self._backbone = prepared(self._backbone, self._adapter, self._checkpointing)
        self.decoder.train()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up a run; see :func:`aqaa.stages.language.keep_frozen`."""
        keep_frozen(self, checkpoint["state_dict"])

    def on_fit_start(self) -> None:
        """Score with shards, which only the engine can make whole.

        The weights are still the old ones, and a new adapter adds nothing.
        """
        if self._reference is None:
            self.decoder.eval()
            self._reference = self._reference_scores(self._source)
            self.decoder.train()

    @property
    def _source(self) -> PreferenceBatches:
        source: PreferenceBatches = self.trainer.datamodule.source  # type: ignore[attr-defined]
        return source

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW on the backbone."""
        steps = int(self.trainer.estimated_stepping_batches)
        return self._optimizer.build(self.decoder, steps)

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Loss of one batch of pairs."""
        found = self._loss(batch)
        margins = {"train/margin": found.margin.mean(), "train/accuracy": found.accuracy}
        self.log_dict({"train/loss": found.loss.detach(), **margins}, batch_size=len(batch.pairs))
        return found.loss

    def _loss(self, batch: PreferenceBatch) -> DpoLoss:
        assert self._reference is not None
        chosen, rejected = self._scores(batch).chunk(2)
        reference = self._reference[batch.pairs].to(chosen.device)
        return masked_dpo(chosen, rejected, reference[:, 0], reference[:, 1], beta=self._beta)

    def _scores(self, batch: PreferenceBatch) -> Tensor:
        """Sums of kept log-probabilities, (2B,)."""
        hidden = self.backbone.hidden(batch.input_ids).last_hidden_state
        # Only positions that count go through the head; under the audio mask a few text ids.
        chosen = (batch.slots > 0) & (batch.keep > 0)
        answer = chosen.nonzero()[:, 0]
        log_probs = self.head(hidden[chosen], batch.targets[chosen], batch.slots[chosen])
        return answer_scores(log_probs, answer, batch.keep[chosen], len(batch.input_ids))

    def _reference_scores(self, source: PreferenceBatches) -> Tensor:
        """Scores (pairs, 2) of the start model, kept beside the run with what they belong to."""
        made_of = tree_hash(self._folder) or content_hash(self._folder)
        key = f"{made_of}-{source.hash}-{source.mask}-{self._normalise}"
        kept = load_tensors(self._scores_file) if self._scores_file.exists() else {}
        kept = from_first(kept)  # its file may come while the others look
        if key in kept:
            return kept[key]
        scores = self._scored(source)
        if rank() == 0:
            save_tensors(self._scores_file, {key: scores})
        return scores

    @torch.no_grad()
    def _scored(self, source: PreferenceBatches) -> Tensor:
        """Scores (pairs, 2); ranks take turns, and all run the model equally often."""
        pairs = len(source.rows)
        begins = list(range(0, pairs, _REFERENCE_BATCH))
        scores, times = torch.zeros(pairs, 2), torch.zeros(pairs, 1)
        scores, times = scores.to(self.device), times.to(self.device)
        for turn in range(math.ceil(len(begins) / ranks())):
            begin = begins[(turn * ranks() + rank()) % len(begins)]
            rows = list(range(begin, min(begin + _REFERENCE_BATCH, pairs)))
            batch = self.transfer_batch_to_device(source.collate(rows), self.device, 0)
            scores[rows] += torch.stack(self._scores(batch).chunk(2), 1)
            times[rows] += 1
        return (total(scores) / total(times)).cpu()

    def export(self, folder: Path, gather: Gather = in_place) -> None:
        """Write the backbone folder, on the rank that keeps what is gathered."""
        self.backbone.save(folder, gather=gather)
