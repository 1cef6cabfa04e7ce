"""Batches for the full-size vocoder: tokens beside their mel, and short segments of sound.

Letters: B clips, N tokens, M mel bins, F mel frames, S speaker width, T = 256 F samples.
"""

import random
from typing import NamedTuple

import torch
from torch import Tensor

from aqaa.data.clips import SILENCE, Clips, split, stretch_of
from aqaa.data.sampler import BucketSampler
from aqaa.data.token_store import TokenStore
from aqaa.data.voice import corrupt
from aqaa.errors import UsageError
from aqaa.signals import (
    GROUP_S,
    GROUP_TOKENS,
    LINGUISTIC_CODES,
    LINGUISTIC_PER_GROUP,
    SEMANTIC_CODES,
    SEMANTIC_PER_GROUP,
    VOCODER_HOP_SAMPLES,
    VOCODER_RATE_HZ,
    CodePair,
)
from aqaa.storage import load_tensors
from aqaa.vocabulary import interleaved
from aqaa.vocoder.draw import Draw, draw

LENGTH_JITTER_GROUPS = 2.0
LONGEST_GAP_S = 0.3  # between the end of a clip and the end of its codes
VALIDATION_CLIPS, VALIDATION_BATCH = 32, 8
GROUP_FRAMES = float(GROUP_S * VOCODER_RATE_HZ / VOCODER_HOP_SAMPLES)  # of the vocoder's mel


class TokenBatch(NamedTuple):
    """``tokens`` (B, N) and ``mel`` (B, M, F) with their real lengths, and what else is decided.

    ``speaker`` (B, S) and ``heard`` (B,), 0 where an item is not told it, are None where no speaker
    is known; ``draw`` holds what chance decided for this batch.
    """

    tokens: Tensor
    token_counts: list[int]
    mel: Tensor
    frame_counts: list[int]
    speaker: Tensor | None
    heard: Tensor | None
    draw: Draw


class TokenFlowBatches:
    """Codes and mels of spoken clips; a batch is a pure function of (seed, step).

    Args:
        corpus: folder of manifests.
        tokens: its token store; clips without both books are left out.
        manifests: names of those to take, such as [answers] for one voice (None: all).
        batch: clips a step.
        longest_groups: longer clips give a stretch of so many groups of 120 ms.
        corruption: share of linguistic and of semantic codes replaced at random.
        speakers: a safetensors file with a vector (S,) for every speaker of the manifests, by
            name (None: the flow is told no speaker).
        speaker_share: of the clips hear their speaker's vector, the others do without.
        cached: clips whose mel is kept in memory.
        seed: decides everything.
    """

    def __init__(
        self,
        *,
        corpus: str,
        tokens: str,
        manifests: list[str] | None = None,
        batch: int = 8,
        longest_groups: int = 50,
        corruption: tuple[float, float] = (0.0, 0.0),
        speakers: str | None = None,
        speaker_share: float = 0.8,
        cached: int = 4096,
        seed: int = 0,
    ) -> None:
        self.store = TokenStore(tokens)
        self.clips = Clips(corpus, manifests=manifests, cached=cached)
        here = [key for key in self.store.keys() if key in self.clips.spoken]
        self._groups = {key: pair.groups for key in here if (pair := self.store[key]).groups}
        if not self._groups:
            raise UsageError(f"{tokens} holds codes of both books for no clip of {corpus}")
        self._say_left_out()
        self._train, self._checked = split(list(self._groups))
        self._longest, self._corruption, self._seed = longest_groups, corruption, seed
        self.speakers = None if speakers is None else self._vectors(speakers)
        self._speaker_share = speaker_share
        lengths = [min(self._groups[key], longest_groups) for key in self._train]
        self._sampler = BucketSampler(
            lengths, batch=min(batch, len(lengths)), seed=seed, jitter=LENGTH_JITTER_GROUPS
        )

    def _say_left_out(self) -> None:
        """One sentence where clips of the folder are not trained on."""
        clips, bad = self.clips.spoken, self.store.bad()
        if missing := [key for key in clips if key not in self._groups]:
            heard = sum(key in bad for key in missing)
            print(
                f"{self.clips.folder}: {len(missing)} of {len(clips)} clips are left out, for "
                f"{self.store.folder} holds no codes of both books of them ({heard} could not be "
                f"heard when it was made, the first is {missing[0]})",
                flush=True,
            )

    def _vectors(self, path: str) -> dict[str, Tensor]:
        """Speaker vectors by name, one for everybody who speaks."""
        vectors = load_tensors(path)
        for key in self._groups:
            if (name := self.clips.spoken[key].speaker) not in vectors:
                raise UsageError(f"{path} holds no vector of {name!r}, the speaker of {key}")
        return {name: vector.float() for name, vector in vectors.items()}

    def batch(self, step: int) -> TokenBatch:
        """Training batch number ``step``."""
        rng = random.Random(f"{self._seed}:{step}")
        keys = [self._train[row] for row in self._sampler.rows(step)]
        places = [(key, rng.randint(0, max(0, self._groups[key] - self._longest))) for key in keys]
        generator = torch.Generator().manual_seed(rng.getrandbits(48))
        return self._collate(places, generator, self._corruption)

    def validation(self) -> list[TokenBatch]:
        """The beginnings of a fixed set of clips under fixed chance, their codes as they are."""
        generator = torch.Generator().manual_seed(self._seed)
        keys = self._checked[:: max(1, len(self._checked) // VALIDATION_CLIPS)]
        keys = sorted(keys[:VALIDATION_CLIPS], key=self._groups.__getitem__)
        parts = (keys[i : i + VALIDATION_BATCH] for i in range(0, len(keys), VALIDATION_BATCH))
        return [self._collate([(k, 0) for k in part], generator, (0.0, 0.0)) for part in parts]

    def _collate(
        self,
        places: list[tuple[str, int]],
        generator: torch.Generator,
        corruption: tuple[float, float],
    ) -> TokenBatch:
        groups = [min(self._groups[key], self._longest) for key, _ in places]
        counts = [n * GROUP_TOKENS for n in groups]
        frames = [int(n * GROUP_FRAMES) for n in groups]
        tokens = torch.zeros(len(places), max(counts), dtype=torch.long)
        mels = []
        for row, (key, start) in enumerate(places):
            ids = self._ids(key, start, groups[row], corruption, generator)
            tokens[row, : counts[row]] = torch.tensor(ids)
            mel = stretch_of(self._mel(key), round(start * GROUP_FRAMES), frames[row], fill=SILENCE)
            mels.append(stretch_of(mel, 0, max(frames), fill=SILENCE))
        mel = torch.stack(mels)
        chance = draw(mel, frames, generator=generator)
        speaker = heard = None
        if self.speakers is not None:
            names = [self.clips.spoken[key].speaker for key, _ in places]
            speaker = torch.stack([self.speakers[name] for name in names])
            heard = (torch.rand(len(places), generator=generator) < self._speaker_share).float()
        return TokenBatch(tokens, counts, mel, frames, speaker, heard, chance)

    def _ids(
        self,
        key: str,
        start: int,
        groups: int,
        corruption: tuple[float, float],
        generator: torch.Generator,
    ) -> list[int]:
        """Both books of a stretch of groups as one stream of ids."""
        pair, books = self.store[key], []
        sizes = ((LINGUISTIC_PER_GROUP, LINGUISTIC_CODES), (SEMANTIC_PER_GROUP, SEMANTIC_CODES))
        shares = zip((pair.linguistic, pair.semantic), sizes, corruption, strict=True)
        for codes, (per_group, size), share in shares:
            piece = torch.tensor(codes[start * per_group : (start + groups) * per_group])
            books.append(corrupt(piece, share, size, generator).tolist())
        return interleaved(CodePair(*books))

    def _mel(self, key: str) -> Tensor:
        """Mel of a clip that lasts as long as its codes say."""
        mel = self.clips.mel(key)
        sound_s = mel.shape[1] * VOCODER_HOP_SAMPLES / VOCODER_RATE_HZ
        codes_s = float(self._groups[key] * GROUP_S)
        if abs(sound_s - codes_s) > LONGEST_GAP_S:
            raise UsageError(
                f"{key} lasts {sound_s:.2f} s in {self.clips.folder}, {codes_s:.2f} s by its codes "
                f"in {self.store.folder}: tokenize that folder again"
            )
        return mel


class SoundBatch(NamedTuple):
    """``mel`` (B, M, F), the ``samples`` (B, T) it came from, and their ``pitch`` in Hz (B, F).

    ``seed`` is of the noise a head may want.
    """

    mel: Tensor
    samples: Tensor
    pitch: Tensor
    seed: int


class SoundBatches:
    """Short segments of spoken clips; a batch is a pure function of (seed, step).

    Args:
        corpus: folder of manifests.
        manifests: names of those to take (None: all).
        batch: segments a step.
        segment_frames: length of a segment.
        pitch: measure the pitch, which a head with a harmonic source learns; else it is 0.
        cached: clips kept in memory.
        seed: decides everything.
    """

    def __init__(
        self,
        *,
        corpus: str,
        manifests: list[str] | None = None,
        batch: int = 8,
        segment_frames: int = 32,
        pitch: bool = True,
        cached: int = 4096,
        seed: int = 0,
    ) -> None:
        self.clips = Clips(corpus, manifests=manifests, cached=cached)
        self._train, self._checked = split(list(self.clips.spoken))
        if not self._train:
            raise UsageError(f"{corpus} holds no clip to train on")
        self.pitch = pitch
        self._batch, self._frames, self._seed = batch, segment_frames, seed

    def batch(self, step: int) -> SoundBatch:
        """Training batch number ``step``."""
        rng = random.Random(f"{self._seed}:{step}")
        return self._collate([rng.choice(self._train) for _ in range(self._batch)], rng)

    def validation(self) -> list[SoundBatch]:
        """Fixed segments of clips that are not trained on, where there are enough for that."""
        rng = random.Random(f"validation:{self._seed}")
        keys = self._checked[:: max(1, len(self._checked) // VALIDATION_CLIPS)]
        return [self._collate(keys[:VALIDATION_CLIPS], rng)]

    def _collate(self, keys: list[str], rng: random.Random) -> SoundBatch:
        size, hop = self._frames, VOCODER_HOP_SAMPLES
        mels, samples, pitches = [], [], []
        for key in keys:
            mel = self.clips.mel(key)
            start = rng.randint(0, max(0, mel.shape[1] - size))
            mels.append(stretch_of(mel, start, size, fill=SILENCE))
            samples.append(
                stretch_of(self.clips.samples(key), start * hop, size * hop, fill=0.0)
            )
            if self.pitch:
                pitches.append(stretch_of(self.clips.pitch(key), start, size, fill=0.0))
        pitch = torch.stack(pitches) if pitches else torch.zeros(len(keys), size)
        return SoundBatch(
            torch.stack(mels), torch.stack(samples), pitch, rng.getrandbits(48)
        )
