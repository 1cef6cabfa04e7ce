"""Transcribed utterances of any aqaa-jsonl manifest: every audio part with a file is one.

Letters: T samples.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqaa.audio.file import file_duration_s, levelled
from aqaa.data.corpus import seconds
from aqaa.data.manifest import clip, read_manifest, sound_path
from aqaa.data.row_sounds import Sound, sounds
from aqaa.errors import UsageError

TRAIN, VALIDATION = ("train", "answers"), ("validation",)
_FIELDS = ("audio", "messages")  # of a row: what was rejected teaches nobody


@dataclass(frozen=True)
class Utterance:
    """A stretch of sound, and what is known of it: None where nothing is."""

    part: dict[str, Any]
    duration_s: float
    text: str | None = None
    phones: tuple[str, ...] | None = None
    speaker: str | None = None
    emotion: str | None = None

    def samples(self, root: Path, *, peak: float) -> Tensor:
        """Its sound (T,) at 16 kHz, brought to ``peak``."""
        return torch.from_numpy(levelled(clip(self.part, root).samples, peak))


def read_utterances(folder: str | Path, splits: Iterable[str]) -> list[Utterance]:
    """Utterances of ``folder/SPLIT.jsonl``, each stretch of sound once; a missing split is empty.

    Raises:
        UsageError: a file is no manifest, or a part names no sound file.
    """
    root = Path(folder)
    found: dict[tuple[Any, ...], Utterance] = {}
    for split in splits:
        path = root / f"{split}.jsonl"
        rows = read_manifest(path) if path.is_file() else []
        for sound in (s for row in rows for s in sounds(row) if s.own and s.field in _FIELDS):
            part, text = sound.part, _learnt(sound)
            place = (part["path"], part.get("start"), part.get("end"))
            if place not in found or (text and found[place].text is None):
                lasts_s = seconds(part) or _rest_s(part, root)
                phones = tuple(part.get("phones") or ()) or None
                emotion = _emotion(sound.style)
                found[place] = Utterance(part, lasts_s, text, phones, sound.speaker, emotion)
    return list(found.values())


def _learnt(sound: Sound) -> str | None:
    return sound.text if sound.text and readable(sound.text) else None


def _rest_s(part: dict[str, Any], root: Path) -> float:
    return file_duration_s(sound_path(part["path"], root)) - (part.get("start") or 0.0)


def _emotion(style: Any) -> str | None:
    """A style is a name, or a mapping that may hold one."""
    name = style.get("emotion") if isinstance(style, dict) else style
    return name if isinstance(name, str) and name else None


def readable(text: str) -> str:
    """Letters, digits, apostrophes and single spaces, in lower case: what is learnt of a text."""
    kept = (c if c.isalnum() or c == "'" else " " for c in unicodedata.normalize("NFKC", text))
    return " ".join("".join(kept).lower().split())


def within(utterances: list[Utterance], longest_s: float, folder: str | Path) -> list[Utterance]:
    """Those that last no longer than ``longest_s``; says how many do.

    Raises:
        UsageError: none is left.
    """
    kept = [u for u in utterances if u.duration_s <= longest_s]
    if not kept:
        raise UsageError(
            f"{folder} has {len(utterances)} utterances, none of at most {longest_s:g} s: "
            "a train.jsonl and a validation.jsonl with sound are needed, cut into sentences"
        )
    if len(kept) < len(utterances):
        print(f"{folder}: {len(utterances) - len(kept)} utterances longer than {longest_s:g} s "
              "are left out", flush=True)  # fmt: skip
    return kept
