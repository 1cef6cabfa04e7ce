"""Batches for the tokenizer stage: log-mels and phone labels of questions and answers.

Letters: B clips, F frames.
"""

import random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aqaa.audio.mel import pad_mels
from aqaa.data.augment import Augmentation
from aqaa.data.corpus import Corpus, question_part, seconds
from aqaa.data.sampler import BucketSampler
from aqaa.errors import UsageError

_LENGTH_JITTER_S = 0.25


class SpeechBatch(NamedTuple):
    """``mel`` (B, 80, F), ``mask`` (B, F), phone ``labels`` of each clip (1-based)."""

    mel: Tensor
    mask: Tensor
    labels: list[list[int]]

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """What the network is called with."""
        return self.mel, self.mask


class SpeechBatches:
    """Clips of a corpus; a batch is a pure function of (seed, step).

    Args:
        corpus: folder of the corpus.
        batch: clips a step.
        answers_share: share of a batch taken from the answer clips, whose codes matter most.
        augmentation: changes to training mels; None leaves them alone.
        seed: decides order and augmentation.
        questions: use only so many training questions (0: all).
    """

    unit = "phone"

    def __init__(
        self,
        *,
        corpus: str,
        batch: int = 12,
        answers_share: float = 0.25,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        questions: int = 0,
    ) -> None:
        self._corpus = Corpus(corpus)
        self._augmentation = augmentation
        self._seed = seed
        self.phones: list[str] = self._corpus.domain["phones"]
        self._labels = {phone: i + 1 for i, phone in enumerate(self.phones)}
        rows = self._corpus.rows("train")
        self._questions = [question_part(row) for row in rows[: questions or len(rows)]]
        self._answers = [row["audio"] for row in self._corpus.answers.values()]
        for part in (*self._questions, *self._answers):
            phones = part.get("phones") or []
            if not phones or not set(phones) <= set(self._labels):
                raise UsageError(
                    f"a clip of {corpus} has the phones {phones}, domain.json lists "
                    f"{len(self.phones)}: a tokenizer learns from phones that are listed there"
                )
        self._from_answers = round(batch * answers_share)
        lengths = [seconds(part) for part in self._questions]
        self._sampler = BucketSampler(
            lengths, batch=batch - self._from_answers, seed=seed, jitter=_LENGTH_JITTER_S
        )

    @property
    def vocabulary(self) -> dict[str, list[str]]:
        """What a network has to know of the data before it can be built."""
        return {"phones": self.phones}

    def batch(self, step: int) -> SpeechBatch:
        """Training batch number ``step``."""
        rng = random.Random(f"{self._seed}:{step}")
        parts = self._clean_parts(step, rng)
        mels = self._corpus.mels(parts)
        if self._augmentation is not None:
            generator = torch.Generator().manual_seed(rng.getrandbits(48))
            mels = [self._augmentation.apply(mel, rng, generator) for mel in mels]
        return self._collate(mels, parts)

    def clean(self, steps: int) -> list[SpeechBatch]:
        """Batches without augmentation, to start a codebook from."""
        rng = random.Random(f"clean:{self._seed}")
        parts = [self._clean_parts(step, rng) for step in range(steps)]
        return [self._collate(self._corpus.mels(p), p) for p in parts]

    def validation(self) -> list[SpeechBatch]:
        """Every validation question, in batches of similar length."""
        parts = sorted(
            (question_part(row) for row in self._corpus.rows("validation")),
            key=seconds,
        )
        groups = [parts[i : i + 32] for i in range(0, len(parts), 32)]
        return [self._collate(self._corpus.mels(g), g) for g in groups]

    def _clean_parts(self, step: int, rng: random.Random) -> list[dict[str, Any]]:
        parts = [self._questions[i] for i in self._sampler.rows(step)]
        return parts + rng.choices(self._answers, k=self._from_answers)

    def _collate(self, mels: list[Tensor], parts: list[dict[str, Any]]) -> SpeechBatch:
        mel, mask = pad_mels(mels)
        return SpeechBatch(mel, mask, [[self._labels[p] for p in part["phones"]] for part in parts])
