"""Preference optimisation with audio ids and markers masked out (paper 3.3, Eq. 2), from SFT 1.

Letters: B pairs (2B answers), T ids.
"""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from aqaa.backbone.head import ScoreHead
from aqaa.backbone.loading import Backbone, load_backbone
from aqaa.data.preferences import PreferenceBatch, PreferenceBatches
from aqaa.losses.masked_dpo import DpoLoss, answer_scores, masked_dpo
from aqaa.stages.language import SLOT_WEIGHTS, Normalise, slot_tables
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.storage import load_tensors, save_tensors, sha256_file

_REFERENCE_BATCH = 8


class Dpo(pl.LightningModule):
    """Direct preference optimisation of a backbone.

    Args:
        model: folder of the backbone to start from; its frozen scores are the reference.
        optimizer: settings.
        beta: strength of the implied penalty (the paper names none; 0.1 is the usual value).
        scores: file that keeps the reference scores, computed once.
        normalise: log-probabilities over the ``slot`` of a position (ours) or the whole ``table``.
    """

    def __init__(
        self,
        *,
        model: str,
        optimizer: OptimizerSettings,
        beta: float = 0.1,
        scores: str,
        normalise: Normalise = "slot",
    ) -> None:
        super().__init__()
        self._folder = Path(model)
        self._optimizer = optimizer
        self._beta = beta
        self._scores_file = Path(scores)
        self._normalise: Normalise = normalise
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
        source: PreferenceBatches = self.trainer.datamodule.source  # type: ignore[attr-defined]
        self._backbone = load_backbone(self._folder)
        tables = slot_tables(self._backbone, SLOT_WEIGHTS, self._normalise)
        self.head = ScoreHead(table=self._backbone.table, tables=tables)
        source.bind(self._backbone.ids)
        self._reference = self._reference_scores(source)
        self.decoder = self._backbone.model.train()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW on the backbone."""
        steps = int(self.trainer.estimated_stepping_batches)
        return self._optimizer.build(self.decoder.named_parameters(), steps)

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

    @torch.no_grad()
    def _reference_scores(self, source: PreferenceBatches) -> Tensor:
        """Scores (pairs, 2) of the start model, kept beside the run with what they belong to."""
        made_of = f"{sha256_file(self._folder / 'model.safetensors')}:{source.hash}"
        made_of = f"{made_of}:{source.mask}:{self._normalise}"
        key = made_of.replace(":", "-")
        if self._scores_file.exists():
            kept = load_tensors(self._scores_file)
            if key in kept:
                return kept[key]
        parts = []
        for begin in range(0, len(source.rows), _REFERENCE_BATCH):
            pairs = list(range(begin, min(begin + _REFERENCE_BATCH, len(source.rows))))
            parts.append(torch.stack(self._scores(source.collate(pairs)).chunk(2), 1))
        scores = torch.cat(parts)
        save_tensors(self._scores_file, {key: scores})
        return scores

    def export(self, folder: Path) -> None:
        """Write the backbone folder."""
        self.backbone.save(folder)
