"""Preference optimisation with audio ids and markers masked out (paper 3.3, Eq. 2), from SFT 1.

Letters: B pairs (2B answers), T ids, P pairs of the data, K kinds of id.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from aqaa.backbone.fork import can_fork, hidden_of_forks
from aqaa.backbone.head import ScoreHead
from aqaa.backbone.loading import Backbone, load_backbone
from aqaa.backbone.lora import Lora
from aqaa.data.preferences import PreferenceBatch, PreferenceBatches
from aqaa.data.scores import reference_scores, scores_beside
from aqaa.losses.masked_dpo import (
    DpoLoss,
    answer_scores,
    masked_dpo,
    preference_figures,
    preference_sums,
)
from aqaa.ranks import from_first, rank, total
from aqaa.stages.language import SLOT_WEIGHTS, Normalise, keep_frozen, prepared, slot_tables
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.storage import Gather, content_hash, in_place, tree_hash
from aqaa.vocabulary import TOKEN_TYPES

_K = len(TOKEN_TYPES)
_SHOWN = TOKEN_TYPES[:3]  # markers have too few ids to tell a curve


class Dpo(pl.LightningModule):
    """Direct preference optimisation of a backbone.

    Args:
        model: folder of the backbone to start from; its frozen scores are the reference.
        optimizer: settings.
        adapter: train this around the frozen backbone (nothing: train every weight).
        activation_checkpointing: keep each layer's input only and compute it again on the way back.
        beta: strength of the implied penalty (the paper names none; 0.1 is the usual value).
        scores: file that keeps the reference scores, computed once (None: one beside the pairs,
            named by what the scores depend on).
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
        scores: str | None = None,
        normalise: Normalise = "slot",
    ) -> None:
        super().__init__()
        self._folder = Path(model)
        self._optimizer = optimizer
        self._adapter = adapter
        self._checkpointing = activation_checkpointing
        self._beta = beta
        self._scores_file = Path(scores) if scores else None
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

        The weights are still the old ones, and an adapter is off.
        """
        if self._reference is None:
            self.decoder.eval()
            adapter = self.backbone.adapter
            with nullcontext() if adapter is None else adapter.peft.disable_adapter():
                self._reference = self._reference_scores(self._source)
            self.decoder.train()

    @property
    def _source(self) -> PreferenceBatches:
        source: PreferenceBatches = self.trainer.datamodule.source  # type: ignore[attr-defined]
        return source

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW on the backbone."""
        steps = int(self.trainer.estimated_stepping_batches)
        first_new_row = self.backbone.ids.vocabulary.linguistic_start
        return self._optimizer.build(self.decoder, steps, first_new_row=first_new_row)

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Loss of one batch of pairs; more figures in the steps that are logged."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = (self.global_step + 1) % every == 0
        found = self._loss(batch, whole=due)
        logged = {"train/loss": found.loss.detach(), "train/margin": found.margin.mean()}
        logged["train/accuracy"] = found.accuracy
        if due and (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            logged |= self._figures(batch, found)
        self.log_dict(logged, batch_size=len(batch.pairs))
        return found.loss

    def _loss(self, batch: PreferenceBatch, *, whole: bool = False) -> DpoLoss:
        """The loss of a batch; ``whole``: what is masked has its margins too, but no gradient."""
        assert self._reference is not None
        chosen, rejected = self._scores(batch, whole=whole).chunk(2)
        reference = self._reference[batch.pairs].to(chosen.device)
        both = (reference[:, 0], reference[:, 1])
        return masked_dpo(chosen, rejected, *both, beta=self._beta, keep=self._source.keep)

    def _scores(self, batch: PreferenceBatch, *, whole: bool = False) -> Tensor:
        """Sums of log-probabilities by kind, (2B, K), of what counts or the ``whole`` answers."""
        if batch.forks is None:
            states = self.backbone.hidden(batch.input_ids)
        else:
            states = hidden_of_forks(self.backbone, batch.input_ids, batch.forks)
        row, place = batch.at
        # Only positions that count go through the head; under the audio mask a few text ids.
        parts = [slice(0, batch.counted)]
        if whole and batch.counted < len(row):
            parts.append(slice(batch.counted, None))
        scores: Tensor | None = None
        for part in parts:
            with torch.set_grad_enabled(torch.is_grad_enabled() and part.start == 0):
                hidden = states.last_hidden_state[row[part], place[part]]
                log_probs = self.head(hidden, batch.targets[part], batch.slots[part])
            answers, kinds = batch.answers[part], batch.kinds[part]
            found = answer_scores(log_probs, answers, kinds, answers=2 * len(batch.pairs), kinds=_K)
            scores = found if scores is None else scores + found
        assert scores is not None
        return scores

    def _figures(self, batch: PreferenceBatch, found: DpoLoss) -> dict[str, Tensor]:
        """Margins, lengths and ties by kind of id, over all ranks."""
        sizes = answer_scores(
            torch.ones_like(batch.targets, dtype=torch.float32),
            batch.answers, batch.kinds, answers=2 * len(batch.pairs), kinds=_K,
        )  # fmt: skip
        sums = preference_sums(found, sizes, batch.alike, self._source.keep)
        shown = preference_figures({name: total(part) for name, part in sums.items()}, _SHOWN)
        return {f"train/{name}": figure for name, figure in shown.items()}

    def _reference_scores(self, source: PreferenceBatches) -> Tensor:
        """Scores (P, 2, K) of the start model, from where they are kept or made now."""
        source.shared_prompt = source.shared_prompt and self._can_fork()
        made_of = from_first(self._made_of(source) if rank() == 0 else None)
        path = self._scores_file or scores_beside(source.folder, made_of)

        def score(pairs: list[int]) -> Tensor:
            batch = self.transfer_batch_to_device(source.collate(pairs), self.device, 0)
            return torch.stack(self._scores(batch, whole=True).chunk(2), 1)

        pairs = len(source.rows)
        return reference_scores(
            score, path, made_of, pairs=pairs, kinds=_K, device=self.device
        )  # fmt: skip

    def _can_fork(self) -> bool:
        """Whether a pair can be one row; said where it cannot."""
        can = can_fork(self.backbone)
        if not can and rank() == 0:
            kind = self.backbone.model.config.model_type
            print(f"dpo: {kind} cannot hold two answers in one row: each pair is two", flush=True)
        return can

    def _made_of(self, source: PreferenceBatches) -> dict[str, str]:
        """All that the reference's scores depend on, as names and hashes."""
        ids = self.backbone.ids
        reads = [asdict(ids.layout), asdict(ids.vocabulary), ids.text.hash]
        return {
            "model": tree_hash(self._folder) or content_hash(self._folder),
            "pairs": source.hash,
            "layout": hashlib.sha256(json.dumps(reads, sort_keys=True).encode()).hexdigest(),
            "normalise": self._normalise,
            "rows": "one a pair" if source.shared_prompt else "one an answer",
            "precision": str(self.backbone.table.dtype).removeprefix("torch."),
        }

    def export(self, folder: Path, gather: Gather = in_place) -> None:
        """Write the backbone folder, on the rank that keeps what is gathered."""
        self.backbone.save(folder, gather=gather)
