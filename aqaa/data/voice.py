"""Batches for the vocoder stage: answer clips as codes and log-mels, or as short segments of sound.

Letters: B clips, G groups, F = 12 G frames, T samples.
"""

import random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aqaa.audio.mel import HOP_SAMPLES, LOG_MEL_FLOOR, pad_mels
from aqaa.data.corpus import Corpus
from aqaa.data.sampler import BucketSampler
from aqaa.data.token_store import TokenStore
from aqaa.signals import (
    GROUP_FRAMES,
    LINGUISTIC_CODES,
    LINGUISTIC_PER_GROUP,
    SEMANTIC_CODES,
    SEMANTIC_PER_GROUP,
)

_LENGTH_JITTER_FRAMES = 24.0


class FlowBatch(NamedTuple):
    """``linguistic`` (B, 2G), ``semantic`` (B, 3G), ``mel`` (B, 80, F), ``mask`` (B, F), and draws.

    The draws of the loss: ``noise`` (B, 160, F / 2), ``time`` (B,) uniform, ``keep`` (B,) 0 or 1.
    """

    linguistic: Tensor
    semantic: Tensor
    mel: Tensor
    mask: Tensor
    noise: Tensor
    time: Tensor
    keep: Tensor


class FlowBatches:
    """Codes and mels of the answer clips; a batch is a pure function of (seed, step).

    Args:
        corpus, tokens: folders of the corpus and its token store.
        batch: clips a step.
        corruption: share of linguistic and of semantic codes replaced at random, so that the
            vocoder survives a backbone's mistakes.
        keep: probability that a clip keeps its condition (classifier-free guidance).
        seed: decides everything.
    """

    def __init__(
        self,
        *,
        corpus: str,
        tokens: str,
        batch: int = 8,
        corruption: tuple[float, float] = (0.05, 0.08),
        keep: float = 0.85,
        seed: int = 0,
    ) -> None:
        self.store = TokenStore(tokens)
        source = Corpus(corpus)
        self.store.check_corpus(source)
        keys = sorted(source.answers)
        self._codes = [self.store[f"answers/{key}"] for key in keys]
        self._mels = source.mels([source.answers[key]["audio"] for key in keys])
        frames = [mel.shape[1] for mel in self._mels]
        self._sampler = BucketSampler(
            frames, batch=min(batch, len(keys)), seed=seed, jitter=_LENGTH_JITTER_FRAMES
        )
        self._corruption = corruption
        self._keep = keep
        self._seed = seed

    def batch(self, step: int) -> FlowBatch:
        """Training batch number ``step``."""
        rng = random.Random(f"{self._seed}:{step}")
        generator = torch.Generator().manual_seed(rng.getrandbits(48))
        return self._collate(self._sampler.rows(step), generator, self._corruption)

    def validation(self) -> list[FlowBatch]:
        """A fixed set of clips under fixed noise, uncorrupted: the training set is all there is."""
        generator = torch.Generator().manual_seed(self._seed)
        clips = list(range(0, len(self._mels), max(1, len(self._mels) // 32)))
        groups = [clips[i : i + 8] for i in range(0, len(clips), 8)]
        return [self._collate(g, generator, (0.0, 0.0)) for g in groups]

    def _collate(
        self, clips: list[int], generator: torch.Generator, corruption: tuple[float, float]
    ) -> FlowBatch:
        mel, mask = pad_mels([self._mels[i] for i in clips])
        groups = mel.shape[2] // GROUP_FRAMES
        linguistic = torch.zeros(len(clips), groups * LINGUISTIC_PER_GROUP, dtype=torch.long)
        semantic = torch.zeros(len(clips), groups * SEMANTIC_PER_GROUP, dtype=torch.long)
        for row, clip in enumerate(clips):
            pair = self._codes[clip]
            linguistic[row, : len(pair.linguistic)] = torch.tensor(pair.linguistic)
            semantic[row, : len(pair.semantic)] = torch.tensor(pair.semantic)
        linguistic = corrupt(linguistic, corruption[0], LINGUISTIC_CODES, generator)
        semantic = corrupt(semantic, corruption[1], SEMANTIC_CODES, generator)
        noise = torch.randn(len(clips), 2 * mel.shape[1], mel.shape[2] // 2, generator=generator)
        time = torch.rand(len(clips), generator=generator)
        keep = (torch.rand(len(clips), generator=generator) < self._keep).float()
        return FlowBatch(linguistic, semantic, mel, mask, noise, time, keep)


def corrupt(codes: Tensor, share: float, size: int, generator: torch.Generator) -> Tensor:
    """A ``share`` of codes of any shape replaced by any of ``size``."""
    wrong = torch.randint(size, codes.shape, generator=generator)
    return torch.where(torch.rand(codes.shape, generator=generator) < share, wrong, codes)


class WaveformBatch(NamedTuple):
    """``mel`` (B, 80, F) and the ``samples`` (B, 160 F) it came from."""

    mel: Tensor
    samples: Tensor


class WaveformBatches:
    """Short segments of the answer clips; a batch is a pure function of (seed, step).

    Args:
        corpus: folder of the corpus.
        batch: segments a step.
        segment_frames: length of a segment.
        seed: decides everything.
    """

    def __init__(
        self, *, corpus: str, batch: int = 12, segment_frames: int = 40, seed: int = 0
    ) -> None:
        source = Corpus(corpus)
        parts = [row["audio"] for _, row in sorted(source.answers.items())]
        self._mels = source.mels(parts)
        self._samples = [source.samples(part) for part in parts]
        self._batch = batch
        self._frames = segment_frames
        self._seed = seed

    def batch(self, step: int) -> WaveformBatch:
        """Training batch number ``step``."""
        rng = random.Random(f"{self._seed}:{step}")
        return self._collate([self._place(rng) for _ in range(self._batch)])

    def validation(self) -> list[WaveformBatch]:
        """Fixed segments: the training set is all there is."""
        rng = random.Random(f"validation:{self._seed}")
        return [self._collate([self._place(rng) for _ in range(32)])]

    def _place(self, rng: random.Random) -> tuple[int, int]:
        clip = rng.randrange(len(self._mels))
        return clip, rng.randrange(max(1, self._mels[clip].shape[1] - self._frames + 1))

    def _collate(self, places: list[tuple[int, int]]) -> WaveformBatch:
        mels, samples = [], []
        for clip, start in places:
            end = start + self._frames
            mel = self._mels[clip][:, start:end]
            wave = self._samples[clip][start * HOP_SAMPLES : end * HOP_SAMPLES]
            mels.append(F.pad(mel, (0, self._frames - mel.shape[1]), value=LOG_MEL_FLOOR))
            samples.append(F.pad(wave, (0, self._frames * HOP_SAMPLES - len(wave))))
        return WaveformBatch(torch.stack(mels), torch.stack(samples))
