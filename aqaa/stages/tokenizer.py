"""Train one speech tokenizer (paper section 2.1): words by CTC, the codebook from some step on.

Letters: B clips, F frames, N codes, D code width, P labels, n vectors.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from aqaa.data.hearing import HeardBatch
from aqaa.data.speech import SpeechBatch
from aqaa.errors import UsageError
from aqaa.losses.codebook import commitment, mel_distance
from aqaa.losses.ctc import ctc, greedy_labels
from aqaa.release.tokenizer import load_one
from aqaa.stages.average import RunningAverage
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.storage import Gather, atomic_folder, in_place
from aqaa.tokenizer.codebook import DEAD_COUNT, check_enough, mini_batch_kmeans
from aqaa.tokenizer.learner import LinguisticLearner, SemanticLearner
from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer, TokenizerOutput

Network = SpeechTokenizer | LinguisticLearner | SemanticLearner
Batch = SpeechBatch | HeardBatch
WEIGHTS = {"ctc": 1.0, "mel": 0.0, "commitment": 0.25}
_AFTER = 1.0  # share of the steps: the codebook comes when all are done


class Tokenizer(pl.LightningModule):
    """Trains a tokenizer of either kind and either book.

    Args:
        network: partial of the network, waiting for the labels of the data.
        optimizer: settings.
        codebook_at: share of the steps after which the codebook is started; without it first, the
            encoder learns undisturbed, and k-means then finds the codes in what it learned. 1, for
            the linguistic book of the released kind alone: when all steps are done.
        codebook_batches: clean batches the k-means sees.
        codebook_rounds: k-means rounds.
        restart_every: steps between restarts of codes that are dead (0: never).
        weights: of the loss terms ``ctc``, ``mel`` and ``commitment`` where they differ from
            :data:`WEIGHTS`; the linguistic book of the released kind has no mel.
        average_decay: of a running average of the weights, which is then what is checked and
            exported (None: the weights themselves).
        start_from: folder of a released tokenizer, or of one of ours, to go on from.
        seed: of the k-means.
    """

    def __init__(
        self,
        *,
        network: Callable[..., Network],
        optimizer: OptimizerSettings,
        codebook_at: float = 0.5,
        codebook_batches: int = 60,
        codebook_rounds: int = 4,
        restart_every: int = 0,
        weights: Mapping[str, float] | None = None,
        average_decay: float | None = None,
        start_from: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= codebook_at <= _AFTER:
            raise UsageError(f"codebook_at={codebook_at}: the codebook must start within the run")
        self._network = network
        self._optimizer = optimizer
        self._codebook_at = codebook_at
        self._codebook_batches = codebook_batches
        self._codebook_rounds = codebook_rounds
        self._restart_every = restart_every
        if unknown := sorted(set(weights or {}) - set(WEIGHTS)):
            raise UsageError(f"stage.weights {unknown}: there are {', '.join(WEIGHTS)}")
        self._weights = {**WEIGHTS, **(weights or {})}
        self._decay = average_decay
        self._start = start_from
        self._seed = seed
        self.tokenizer: Any = None
        self.average: Any = None

    @property
    def network(self) -> Network:
        """What is trained, once built."""
        assert self.tokenizer is not None, "configure_model comes first"
        network: Network = self.tokenizer
        return network

    @property
    def best(self) -> Network:
        """What is checked and exported: the average, if there is one."""
        best: Network = self.network if self.average is None else self.average.module
        return best

    @property
    def _source(self) -> Any:
        return self.trainer.datamodule.source  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Build the network with the data's labels, and its average; nothing on a second call."""
        if self.tokenizer is not None:
            return
        self.tokenizer = self._network(**self._source.vocabulary)
        self._check_codebook_at()
        if self._start is not None:
            self.tokenizer.take(load_one(self._start, self.network.book))
        if self._decay is not None:
            self.average = RunningAverage(network=self.tokenizer, decay=self._decay)

    def _check_codebook_at(self) -> None:
        clustered = isinstance(self.network, LinguisticLearner)
        if clustered != (self._codebook_at == _AFTER):
            raise UsageError(
                f"stage.codebook_at={self._codebook_at:g}: "
                + ("this book is clustered when the encoder has learned: set it to 1"
                   if clustered else "the codebook must start within the run, before 1")
            )  # fmt: skip

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW on the network, not on its average."""
        steps = int(self.trainer.estimated_stepping_batches)
        return self._optimizer.build(self.network, steps)

    def on_train_start(self) -> None:
        """Measure the corpus before the first step; what is started from brings its measure."""
        network = self.network
        if isinstance(network, LinguisticLearner) and not self.global_step and not self._start:
            clean = [self._here(b)[:2] for b in self._source.clean(self._codebook_batches)]
            check_enough(sum(int(n.sum()) for _, n in clean), len(network.codebook.vectors))
            network.measure(clean)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start the codebook when its time has come."""
        begin = int(self._codebook_at * self.trainer.estimated_stepping_batches)
        if self.global_step < begin or self.network.codebook.active:
            return
        generator = torch.Generator().manual_seed(self._seed)
        vectors = self._vectors(self.network)
        self.network.codebook.start(vectors, rounds=self._codebook_rounds, generator=generator)

    def _vectors(self, network: Network) -> Tensor:
        """What a codebook is to name (n, D), in clean batches."""
        network.eval()
        clean = self._source.clean(self._codebook_batches)
        found = torch.cat([network.vectors(*self._here(batch)) for batch in clean])
        network.train()
        return found

    def _here(self, batch: Batch) -> Any:
        """The inputs of a batch that did not come through the trainer, on this device."""
        return pl.utilities.move_data_to_device(batch.inputs, self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        network = self.network
        out = network(*batch.inputs)
        loss, terms = self._loss(out, batch)
        if isinstance(network, SemanticLearner) and out.codes is not None:
            terms["dead_codes"] = torch.tensor(float(self._restart(network, out)))
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        return loss

    def _restart(self, network: SemanticLearner, out: TokenizerOutput) -> int:
        """Restart dead codes when it is time (rank 0's choice holds); how many there are."""
        if not self._restart_every or self.global_step % self._restart_every:
            return int((network.tokenizer.codebook.counts < DEAD_COUNT).sum())
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + self.global_step)
        return network.restart(out, generator=generator)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Move the running average."""
        if self.average is not None:
            self.average.follow(self.network, self.global_step)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and error rate of the labels on clips never trained."""
        out = self.best(*batch.inputs)
        _, terms = self._loss(out, batch)
        steps = out.steps.long().tolist()
        wrong = sum(
            Levenshtein.distance(greedy_labels(log_probs, count), labels)
            for log_probs, count, labels in zip(out.log_probs, steps, batch.labels, strict=True)
            if labels is not None
        )
        total = sum(len(labels) for labels in batch.labels if labels is not None)
        name = f"{self._source.unit}_error_rate"
        values = {**terms, name: torch.tensor(wrong / max(1, total))}
        self.log_dict({f"validation/{k}": v for k, v in values.items()}, batch_size=max(1, total))

    def _loss(self, out: TokenizerOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        rows = [i for i, labels in enumerate(batch.labels) if labels is not None]
        spoken = [labels for labels in batch.labels if labels is not None]
        whole = len(rows) == len(out.log_probs)
        terms = {
            "ctc": ctc(
                out.log_probs if whole else out.log_probs[rows],
                out.steps if whole else out.steps[rows],
                spoken,
            )
        }
        loss = self._weights["ctc"] * terms["ctc"]
        if out.mel is not None:
            terms["mel"] = mel_distance(out.mel, batch.mel, batch.mask)
            loss = loss + self._weights["mel"] * terms["mel"]
        if out.codes is not None:
            terms["commitment"] = commitment(out.z, out.quantised, out.mask)
            loss = loss + self._weights["commitment"] * terms["commitment"]
        for name, term in out.extra.items():
            loss = loss + out.weights[name] * term
        terms |= out.extra
        return loss, {name: term.detach() for name, term in {**terms, "loss": loss}.items()}

    def export(self, folder: Path, gather: Gather = in_place) -> None:
        """Write the tokenizer's model folder; a book that comes last is clustered here."""
        with gather([]) as mine:
            if mine:
                if self._codebook_at == _AFTER:
                    self._cluster()
                with atomic_folder(folder) as temporary:
                    self.best.save(temporary)

    def _cluster(self) -> None:
        """Find the codes by k-means in what the encoder says of clean batches."""
        book = self.best.codebook
        centres = mini_batch_kmeans(
            self._vectors(self.best),
            codes=len(book.vectors),
            epochs=self._codebook_rounds,
            seed=self._seed,
        )
        book.hold(centres)
