"""Transcribed utterances of any aqaa-jsonl manifest: every audio part with a file is one.

Letters: T samples.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqaa.audio.file import file_duration_s, levelled
from aqaa.data.corpus import seconds
from aqaa.data.manifest import HUMAN, clip, read_manifest, sound_path
from aqaa.errors import UsageError

TRAIN, VALIDATION = ("train", "answers"), ("validation",)


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
        for part, known in (pair for row in rows for pair in _parts(row)):
            place = (part["path"], part.get("start"), part.get("end"))
            if place not in found or known.get("text") and found[place].text is None:
                lasts_s = seconds(part) or _rest_s(part, root)
                found[place] = Utterance(part, lasts_s, **known)
    return list(found.values())


def _rest_s(part: dict[str, Any], root: Path) -> float:
    return file_duration_s(sound_path(part["path"], root)) - (part.get("start") or 0.0)


def _parts(row: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every audio part of a row that names a file, and what the row says of it.

    What a part has by ``ref`` is a row of its own elsewhere.
    """
    owners = [{**row, "content": [row["audio"]]}] if isinstance(row.get("audio"), dict) else []
    owners += row.get("messages") or []
    voice = (row.get("meta") or {}).get("voice")
    for owner in owners:
        parts = owner.get("content") or []
        heard = [p for p in parts if isinstance(p, dict) and "path" in p and "ref" not in p]
        for part in heard:
            text = part.get("text") or (_written(owner) if len(heard) == 1 else None)
            yield part, {
                "text": text if isinstance(text, str) and readable(text) else None,
                "phones": tuple(part.get("phones") or ()) or None,
                "speaker": owner.get("speaker") or (voice if owner.get("role") in HUMAN else None),
                "emotion": _emotion(owner.get("style")),
            }


def _written(owner: dict[str, Any]) -> str | None:
    """What stands beside a sound as its words: the row's text, or that of an answer."""
    if owner.get("role") in HUMAN:
        return None
    parts = [p for p in owner["content"] if isinstance(p, dict) and p.get("type") == "text"]
    return owner.get("text") or " ".join(str(part.get("text", "")) for part in parts)


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
