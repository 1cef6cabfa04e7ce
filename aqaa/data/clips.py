"""Spoken clips of a folder of manifests, at the rate of the full-size vocoder.

Letters: T samples, F = T // 256 mel frames, M mel bins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aqaa.audio.pitch import pitch
from aqaa.audio.vocoder_mel import EDGE_SAMPLES, MAGNITUDE_FLOOR, vocoder_mel
from aqaa.data.manifest import manifests_of, read_manifest
from aqaa.data.row_sounds import heard, keyed
from aqaa.errors import UsageError
from aqaa.signals import VOCODER_HOP_SAMPLES, VOCODER_RATE_HZ

SILENCE = math.log(MAGNITUDE_FLOOR)  # of a mel
TEST, VALIDATION = "test/", "validation/"
HELD_OUT_EVERY = 20  # of the clips, where no manifest is for validation


@dataclass(frozen=True)
class Spoken:
    """Where a clip lies, who speaks and what is said ('' where the manifest does not say)."""

    part: dict[str, Any]
    speaker: str
    text: str


def spoken(folder: str | Path, manifests: Sequence[str] | None = None) -> dict[str, Spoken]:
    """Clips with sound of their own by ``<manifest>/<row id>``, the keys of a token store.

    Args:
        folder: of the manifests.
        manifests: names of those to take (None: all).

    Raises:
        UsageError: the folder holds no manifest.
    """
    names = [p.stem for p in manifests_of(folder)] if manifests is None else manifests
    found = {}
    for name in names:
        for row in read_manifest(Path(folder) / f"{name}.jsonl"):
            for key, sound in keyed(name, row):
                found[key] = Spoken(sound.part, str(sound.speaker or ""), sound.text or "")
    return found


def split(keys: list[str]) -> tuple[list[str], list[str]]:
    """Keys to train on and keys to check on; those of a test manifest are for neither."""
    rest = [key for key in keys if not key.startswith(TEST)]
    checked = [key for key in rest if key.startswith(VALIDATION)]
    if not checked and len(rest) > HELD_OUT_EVERY:
        checked = rest[::HELD_OUT_EVERY]
    out = set(checked)
    return [key for key in rest if key not in out], checked or rest


class Clips:
    """Sound, mel and pitch of clips, read when asked for; the last ``cached`` of each are kept.

    Args:
        folder: holds manifests of aqaa-jsonl.
        manifests: names of those to take (None: all).
        cached: how many clips.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        manifests: Sequence[str] | None = None,
        cached: int = 4096,
    ) -> None:
        self.folder = Path(folder)
        self.spoken = spoken(folder, manifests)
        self.samples = lru_cache(cached)(self._samples)
        self.mel = lru_cache(cached)(self._mel)
        self.pitch = lru_cache(cached)(self._pitch)

    def _samples(self, key: str) -> Tensor:
        """Samples (T,) at the vocoder's rate, as tokenizers hear them."""
        sound = heard(self.spoken[key].part, self.folder, rate_hz=VOCODER_RATE_HZ)
        if len(sound) <= EDGE_SAMPLES:
            raise UsageError(f"{key} of {self.folder} is too short: {len(sound)} samples")
        return torch.from_numpy(sound)

    def _mel(self, key: str) -> Tensor:
        """Log-mel (M, F) in half precision, which is finer than a network hears."""
        return vocoder_mel(self.samples(key)[None])[0].half()

    def _pitch(self, key: str) -> Tensor:
        """Pitch in Hz (F,), 0 where nothing is voiced."""
        samples = self.samples(key)
        return pitch(samples, rate_hz=VOCODER_RATE_HZ, hop_samples=VOCODER_HOP_SAMPLES)


def stretch_of(sequence: Tensor, start: int, size: int, *, fill: float) -> Tensor:
    """``size`` columns (..., size) from ``start`` on, ``fill`` where there is nothing left."""
    piece = sequence[..., start : start + size].float()
    return F.pad(piece, (0, size - piece.shape[-1]), value=fill)
