"""A synthesised (or converted) corpus folder: manifests, their sound, their log-mels.

Letters: T samples, F mel frames.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqaa.audio.mel import HOP_SAMPLES, log_mel
from aqaa.data.manifest import Manifest, clip, read_manifest
from aqaa.data.row_sounds import is_corpus, sounds
from aqaa.errors import UsageError
from aqaa.storage import read_json

SPLITS = ("train", "validation", "test")
_MEL_BATCH = 32
_Key = tuple[str | None, float | None, float | None]


class Corpus:
    """Rows of a corpus folder and the log-mels of their clips, computed once and kept in fp16."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not is_corpus(folder):
            raise UsageError(f"{folder} is not a corpus: run `aqaa data synthesize out={folder}`")
        self._mels: dict[_Key, Tensor] = {}

    @cached_property
    def domain(self) -> dict[str, Any]:
        """What domain.json says: answers, phones, words, settings."""
        return read_json(self.folder / "domain.json")

    @cached_property
    def answers(self) -> dict[str, dict[str, Any]]:
        """Rows of answers.jsonl by id."""
        return {row["id"]: row for row in read_manifest(self.folder / "answers.jsonl")}

    def rows(self, split: str) -> list[dict[str, Any]]:
        """Rows of one split's manifest."""
        return read_manifest(self.folder / f"{split}.jsonl")

    def lazy_rows(self, split: str) -> Manifest:
        """The same rows, each read when it is asked for: training must not hold them all."""
        return Manifest(self.folder / f"{split}.jsonl")

    def samples(self, part: dict[str, Any]) -> Tensor:
        """Samples (T,) of an audio part, 16 kHz."""
        return torch.from_numpy(clip(part, self.folder).samples)

    def mels(self, parts: list[dict[str, Any]]) -> list[Tensor]:
        """Log-mels (80, F) in float32 of audio parts, from the cache where possible."""
        keys = [(part.get("path"), part.get("start"), part.get("end")) for part in parts]
        missing = [i for i, key in enumerate(keys) if key not in self._mels]
        missing.sort(key=lambda i: seconds(parts[i]))
        for begin in range(0, len(missing), _MEL_BATCH):
            self._compute([(keys[i], parts[i]) for i in missing[begin : begin + _MEL_BATCH]])
        return [self._mels[key].float() for key in keys]

    def _compute(self, items: list[tuple[_Key, dict[str, Any]]]) -> None:
        clips = [self.samples(part) for _, part in items]
        longest = max(len(clip) for clip in clips)
        batch = torch.stack([torch.nn.functional.pad(c, (0, longest - len(c))) for c in clips])
        frames = [len(clip) // HOP_SAMPLES for clip in clips]
        for (key, _), mel, count in zip(items, log_mel(batch), frames, strict=True):
            self._mels[key] = mel[:, :count].half()


def seconds(part: dict[str, Any]) -> float:
    """How long an audio part lasts; 0.0 where it runs to the end of its file."""
    end_s = part.get("end")
    return 0.0 if end_s is None else end_s - (part.get("start") or 0.0)


def question_part(row: dict[str, Any]) -> dict[str, Any]:
    """The audio part of a chat row's last user message; UsageError where nothing is asked aloud."""
    asked = [s for s in sounds(row) if s.human and s.field == "messages"]
    if not asked:
        raise UsageError(
            f"row {row['id']} holds no user message with sound: nothing is asked aloud"
        )
    return next(s.part for s in asked if s.turn == asked[-1].turn)


def answer_text(row: dict[str, Any]) -> str:
    """The text of a chat row's answer; UsageError where it has none."""
    for part in row["messages"][-1]["content"]:
        if part["type"] == "text":
            return part["text"]
    raise UsageError(f"the answer of row {row['id']} has no text")
