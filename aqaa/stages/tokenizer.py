"""Train one speech tokenizer (paper section 2.1): phones by CTC, the codebook from half-way on.

Letters: B clips, F frames, N codes, P labels.
"""

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from aqaa.data.speech import SpeechBatch
from aqaa.errors import UsageError
from aqaa.losses.codebook import commitment, mel_distance
from aqaa.losses.ctc import ctc, greedy_labels
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.storage import Gather, atomic_folder, in_place
from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer, TokenizerOutput


class Tokenizer(pl.LightningModule):
    """Trains a :class:`SpeechTokenizer`.

    Args:
        network: partial of the tokenizer, waiting for the phones of the data.
        optimizer: settings.
        codebook_at: share of the steps after which the codebook is started; without it first, the
            encoder learns undisturbed, and k-means then finds the codes in what it learned.
        codebook_batches: clean batches the k-means sees.
        codebook_rounds: k-means rounds.
        ctc_weight, mel_weight, commitment_weight: of the loss terms; the linguistic book has no
            mel.
        seed: of the k-means.
    """

    def __init__(
        self,
        *,
        network: Callable[..., SpeechTokenizer],
        optimizer: OptimizerSettings,
        codebook_at: float = 0.5,
        codebook_batches: int = 60,
        codebook_rounds: int = 4,
        ctc_weight: float = 1.0,
        mel_weight: float = 0.0,
        commitment_weight: float = 0.25,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= codebook_at < 1:
            raise UsageError(f"codebook_at={codebook_at}: the codebook must start within the run")
        self._network = network
        self._optimizer = optimizer
        self._codebook_at = codebook_at
        self._codebook_batches = codebook_batches
        self._codebook_rounds = codebook_rounds
        self._weights = (ctc_weight, mel_weight, commitment_weight)
        self._seed = seed
        self.tokenizer: SpeechTokenizer | None = None

    @property
    def network(self) -> SpeechTokenizer:
        """The tokenizer, once built."""
        assert self.tokenizer is not None, "configure_model comes first"
        return self.tokenizer

    def configure_model(self) -> None:
        """Build the tokenizer with the data's phones; nothing on a second call."""
        if self.tokenizer is None:
            phones = self.trainer.datamodule.source.phones  # type: ignore[attr-defined]
            self.tokenizer = self._network(phones=phones)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW on the tokenizer."""
        steps = int(self.trainer.estimated_stepping_batches)
        return self._optimizer.build(self.network, steps)

    def on_train_batch_start(self, batch: SpeechBatch, batch_idx: int) -> None:
        """Start the codebook when its time has come."""
        begin = int(self._codebook_at * self.trainer.estimated_stepping_batches)
        if self.global_step < begin or self.network.codebook.active:
            return
        self.network.eval()
        source = self.trainer.datamodule.source  # type: ignore[attr-defined]
        found = []
        with torch.no_grad():
            for clean in source.clean(self._codebook_batches):
                mel = self.network.normalise(clean.mel, clean.mask)
                z, mask = self.network.encoder(mel, clean.mask)
                found.append(z[mask.bool()])
        self.network.train()
        generator = torch.Generator().manual_seed(self._seed)
        vectors = torch.cat(found)
        self.network.codebook.start(vectors, rounds=self._codebook_rounds, generator=generator)

    def training_step(self, batch: SpeechBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        out = self.network(batch.mel, batch.mask)
        loss, terms = self._loss(out, batch)
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        return loss

    def validation_step(self, batch: SpeechBatch, batch_idx: int) -> None:
        """Loss and phone error rate on voices never trained."""
        out = self.network(batch.mel, batch.mask)
        _, terms = self._loss(out, batch)
        steps = out.steps.long().tolist()
        wrong = sum(
            Levenshtein.distance(greedy_labels(log_probs, count), labels)
            for log_probs, count, labels in zip(out.log_probs, steps, batch.phones, strict=True)
        )
        total = sum(map(len, batch.phones))
        values = {**terms, "phone_error_rate": torch.tensor(wrong / total)}
        self.log_dict({f"validation/{k}": v for k, v in values.items()}, batch_size=total)

    def _loss(self, out: TokenizerOutput, batch: SpeechBatch) -> tuple[Tensor, dict[str, Tensor]]:
        ctc_weight, mel_weight, commitment_weight = self._weights
        terms = {"ctc": ctc(out.log_probs, out.steps, batch.phones)}
        loss = ctc_weight * terms["ctc"]
        if out.mel is not None:
            terms["mel"] = mel_distance(out.mel, batch.mel, batch.mask)
            loss = loss + mel_weight * terms["mel"]
        if out.codes is not None:
            terms["commitment"] = commitment(out.z, out.quantised, out.mask)
            loss = loss + commitment_weight * terms["commitment"]
        return loss, {name: term.detach() for name, term in {**terms, "loss": loss}.items()}

    def export(self, folder: Path, gather: Gather = in_place) -> None:
        """Write the tokenizer's model folder."""
        with gather([]) as mine:
            if mine:
                with atomic_folder(folder) as temporary:
                    self.network.save(temporary)
