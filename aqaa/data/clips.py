"""Spoken clips of a folder of manifests, at the rate of the full-size vocoder.

Letters: T samples, F = T // 256 mel frames, M mel bins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from aqaa.audio.file import PEAK, read_audio, trim
from aqaa.audio.pitch import pitch
from aqaa.audio.vocoder_mel import EDGE_SAMPLES, MAGNITUDE_FLOOR, vocoder_mel
from aqaa.data.corpus import is_corpus, question_part
from aqaa.data.keyed_clips import audio_parts
from aqaa.data.manifest import manifests_of, read_manifest, sound_path
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
    found, corpus = {}, is_corpus(folder)
    for name in names:
        for row in read_manifest(Path(folder) / f"{name}.jsonl"):
            speaker = str(row.get("speaker") or (row.get("meta") or {}).get("voice") or "")
            for ending, part in _parts(row, corpus):
                text = str(part.get("text") or row.get("text") or "")
                found[f"{name}/{row['id']}{ending}"] = Spoken(part, speaker, text)
    return found


def _parts(row: dict[str, Any], corpus: bool) -> list[tuple[str, dict[str, Any]]]:
    """Audio parts with sound of their own, and what their keys end in where there are several."""
    if corpus:
        part = row.get("audio") or question_part(row)
        return [("", part)] if "path" in part else []
    found = [part for part, _ in audio_parts(row) if "path" in part]
    return [(f"/{i}" if len(found) > 1 else "", part) for i, part in enumerate(found)]


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
        self._trimmed = is_corpus(folder)
        self.samples = lru_cache(cached)(self._samples)
        self.mel = lru_cache(cached)(self._mel)
        self.pitch = lru_cache(cached)(self._pitch)

    def _samples(self, key: str) -> Tensor:
        """Samples (T,) at the vocoder's rate, trimmed and at a level as tokenizers hear them."""
        part = self.spoken[key].part
        sound = read_audio(
            sound_path(part["path"], self.folder),
            rate_hz=VOCODER_RATE_HZ,
            start_s=part.get("start") or 0.0,
            end_s=part.get("end"),
        ).samples
        loudest = float(np.abs(sound).max())
        if not self._trimmed:
            sound = trim(sound, VOCODER_RATE_HZ)
        if len(sound) <= EDGE_SAMPLES:
            raise UsageError(f"{key} of {self.folder} is too short: {len(sound)} samples")
        return torch.from_numpy(sound) * (PEAK / loudest if loudest else 1.0)

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
