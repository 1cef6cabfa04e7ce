"""Batches for tokenizers of the released kind: what each book's ear gives, and what to learn.

Letters: B clips, F frames of the ear (60 ms linguistic, 10 ms semantic), I numbers a frame,
N places of 40 ms, T samples.
"""

import random
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from aqaa.audio.fbank import STEP, fbank, stack_frames, stacked_frames
from aqaa.audio.pitch import Voice, voice
from aqaa.audio.whisper_mel import whisper_mel
from aqaa.data.augment import Augmentation
from aqaa.data.sampler import BucketSampler
from aqaa.data.utterances import (
    TRAIN,
    VALIDATION,
    Utterance,
    read_utterances,
    readable,
    within,
)
from aqaa.errors import UsageError

PEAK = 0.999  # the level that tokenizers of the released kind hear
_LENGTH_JITTER_S = 0.25
_SHORTEST_SAMPLES = 880
_FRAMES_PER_PLACE = 4
# Both ears' numbers as logarithms of a magnitude, which is what an augmentation changes.
_FBANK_OFFSET, _FBANK_FLOOR = 20.8, -18.5  # of 16-bit sound
_LN10 = 2.302585
_WHISPER_RANGE = 2.0


class Targets(NamedTuple):
    """What the semantic book learns besides words.

    ``f0_hz`` (B, N), 0 where nothing is voiced; ``level`` (B, N) against the clip's mean, in
    nats; ``emotion`` (B,), -1 where none is known.
    """

    f0_hz: Tensor
    level: Tensor
    emotion: Tensor


class HeardBatch(NamedTuple):
    """``feats`` (B, F, I) with ``lengths`` (B,), and what to learn.

    ``labels`` of each clip are 1-based; None where nobody wrote down what was said.
    """

    feats: Tensor
    lengths: Tensor
    targets: Targets
    labels: list[list[int] | None]

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Targets]:
        """What the network is called with."""
        return self.feats, self.lengths, self.targets

    @property
    def mel(self) -> Tensor:
        """The semantic ear's frames as a picture (B, I, F)."""
        return self.feats.transpose(1, 2)

    @property
    def mask(self) -> Tensor:
        """1 where a frame is real (B, F)."""
        places = torch.arange(self.feats.shape[1], device=self.lengths.device)
        return (places < self.lengths[:, None]).to(self.feats.dtype)


class HeardBatches:
    """Clips of a corpus as one book hears them; a batch is a pure function of (seed, step).

    Args:
        corpus: folder of train.jsonl and validation.jsonl, aqaa-jsonl with transcripts; what
            nobody transcribed shapes the codes and teaches no words.
        book: ``linguistic`` (filter banks) or ``semantic`` (Whisper's mel).
        labels: ``characters`` of the transcripts, or ``phones`` of the parts that have them.
        batch: clips a step.
        bins: of the semantic ear's mel.
        longest_s: longer clips are left out.
        augmentation: changes to training frames; None leaves them alone.
        cached_clips: so many clips are kept in memory once they were heard.
        seed: decides order and augmentation.
    """

    def __init__(
        self,
        *,
        corpus: str,
        book: Literal["linguistic", "semantic"],
        labels: Literal["characters", "phones"] = "characters",
        batch: int = 16,
        bins: int = 128,
        longest_s: float = 30.0,
        augmentation: Augmentation | None = None,
        cached_clips: int = 20_000,
        seed: int = 0,
    ) -> None:
        if book == "semantic" and augmentation is not None and augmentation.warp:
            raise UsageError(
                f"the semantic book's pitch is measured on the sound as it is: set "
                f"data.augmentation.warp=0 in place of {augmentation.warp:g}"
            )
        train = within(read_utterances(corpus, TRAIN), longest_s, corpus)
        self._validation = within(read_utterances(corpus, VALIDATION), longest_s, corpus)
        self._root, self._book, self._bins = Path(corpus), book, bins
        self._augmentation, self._seed = augmentation, seed
        self._batch, self._cached_clips = batch, cached_clips
        self._cache: dict[int, tuple[Tensor, Voice | None]] = {}
        self.unit = labels.removesuffix("s")
        spoken = [self._spoken(u) for u in (*train, *self._validation)]
        self.labels = sorted({label for line in spoken for label in line or ()})
        self.emotions = sorted({u.emotion for u in train if u.emotion})
        if not self.labels:
            raise UsageError(f"no utterance of {corpus} has {labels}: a transcript is needed")
        self._number = {label: i + 1 for i, label in enumerate(self.labels)}
        # The linguistic book learns from words alone; the semantic one hears all.
        self._all = train
        self._train = [u for u in train if book == "semantic" or self._spoken(u)]
        lengths = [u.duration_s for u in self._train]
        self._sampler = BucketSampler(lengths, batch=batch, seed=seed, jitter=_LENGTH_JITTER_S)

    @property
    def vocabulary(self) -> dict[str, list[str]]:
        """What a network has to know of the data before it can be built."""
        return {"labels": self.labels, "emotions": self.emotions}

    def batch(self, step: int) -> HeardBatch:
        """Training batch number ``step``."""
        rng = random.Random(f"{self._seed}:{step}")
        utterances = [self._train[i] for i in self._sampler.rows(step)]
        return self._collate(utterances, rng if self._augmentation else None)

    def clean(self, steps: int) -> list[HeardBatch]:
        """Batches without augmentation, to measure and to start a codebook from."""
        order = random.Random(f"clean:{self._seed}").sample(self._all, len(self._all))
        kept = sorted(order[: steps * self._batch], key=lambda u: u.duration_s)
        return self._groups(kept)

    def validation(self) -> list[HeardBatch]:
        """Every validation clip, in batches of similar length."""
        return self._groups(sorted(self._validation, key=lambda u: u.duration_s))

    def _groups(self, clips: list[Utterance]) -> list[HeardBatch]:
        starts = range(0, len(clips), self._batch)
        return [self._collate(clips[i : i + self._batch], None) for i in starts]

    def _spoken(self, utterance: Utterance) -> tuple[str, ...] | None:
        """Labels of what was said, in order; None where nobody wrote it down."""
        if self.unit == "phone":
            return utterance.phones
        return tuple(readable(utterance.text)) if utterance.text else None

    def _collate(self, utterances: list[Utterance], rng: random.Random | None) -> HeardBatch:
        heard = [self._heard(u) for u in utterances]
        frames = [self._ready(mel, rng) for mel, _ in heard]
        lengths = torch.tensor([len(f) for f in frames])
        spoken = [self._spoken(u) for u in utterances]
        labels = [[self._number[c] for c in line] if line else None for line in spoken]
        feats = pad_sequence(frames, batch_first=True)
        return HeardBatch(feats, lengths, self._targets(utterances, heard), labels)

    def _targets(self, utterances: list[Utterance], heard: list[Any]) -> Targets:
        number = {name: i for i, name in enumerate(self.emotions)}
        emotion = torch.tensor([number.get(u.emotion or "", -1) for u in utterances])
        if self._book == "linguistic":
            nothing = torch.zeros(len(utterances), 0)
            return Targets(nothing, nothing, emotion)
        pitches = pad_sequence([v.f0_hz for _, v in heard], batch_first=True)
        levels = [v.level - v.level.mean() for _, v in heard]
        return Targets(pitches, pad_sequence(levels, batch_first=True), emotion)

    def _heard(self, utterance: Utterance) -> tuple[Tensor, Voice | None]:
        """Filter banks (10 ms, 80) or mel (10 ms, bins) of a clip, and its voice if needed."""
        if (found := self._cache.get(id(utterance))) is not None:
            return found
        samples = utterance.samples(self._root, peak=PEAK)
        known: Voice | None = None
        if len(samples) < _SHORTEST_SAMPLES or not stacked_frames(len(samples)):
            raise UsageError(
                f"{utterance.part['path']} has a stretch of {utterance.duration_s:.3f} s, which is "
                "too short to hear: leave it out of the manifest"
            )
        if self._book == "linguistic":
            frames = fbank(samples)[: stacked_frames(len(samples)) * STEP]
        else:
            frames = whisper_mel(samples, bins=self._bins).T
            known = voice(samples, -(-len(frames) // _FRAMES_PER_PLACE))
        if len(self._cache) < self._cached_clips:
            self._cache[id(utterance)] = frames, known
        return frames, known

    def _ready(self, frames: Tensor, rng: random.Random | None) -> Tensor:
        """Frames as the encoder takes them (F, I), changed where ``rng`` is given."""
        if rng is not None and self._augmentation is not None:
            generator = torch.Generator().manual_seed(rng.getrandbits(48))
            frames = self._changed(frames, self._augmentation, rng, generator)
        if self._book == "semantic":
            return frames
        return stack_frames(frames, -(-len(frames) // STEP))

    def _changed(
        self, frames: Tensor, change: Augmentation, rng: random.Random, generator: torch.Generator
    ) -> Tensor:
        if self._book == "linguistic":
            mel = (frames.T - _FBANK_OFFSET) / 2
            mel = change.apply(mel, rng, generator, floor=_FBANK_FLOOR)
            return (2 * mel + _FBANK_OFFSET).T
        mel = change.apply((2 * _LN10) * (frames.T - 1), rng, generator, floor=_FBANK_FLOOR)
        scaled = mel / (2 * _LN10) + 1
        return torch.maximum(scaled, scaled.max() - _WHISPER_RANGE).T
