"""A synthesised (or converted) corpus folder: manifests, their sound, their log-mels.

Letters: T samples, F mel frames.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqaa.audio.file import read_audio
from aqaa.audio.mel import HOP_SAMPLES, log_mel
from aqaa.data.manifest import read_manifest, sound_path
from aqaa.errors import UsageError
from aqaa.storage import read_json

SPLITS = ("train", "validation", "test")
_MEL_BATCH = 32


class Corpus:
    """Rows of a corpus folder and the log-mels of their clips, computed once and kept in fp16."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "domain.json").is_file():
            raise UsageError(f"{folder} is not a corpus: run `aqaa data synthesize out={folder}`")
        self._mels: dict[tuple[str, float], Tensor] = {}

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

    def samples(self, part: dict[str, Any]) -> Tensor:
        """Samples (T,) of an audio part, 16 kHz."""
        path = sound_path(part["path"], self.folder)
        wave = read_audio(path, start_s=part["start"], end_s=part["end"])
        return torch.from_numpy(wave.samples)

    def mels(self, parts: list[dict[str, Any]]) -> list[Tensor]:
        """Log-mels (80, F) in float32 of audio parts, from the cache where possible."""
        keys = [(part["path"], part["start"]) for part in parts]
        missing = [i for i, key in enumerate(keys) if key not in self._mels]
        missing.sort(key=lambda i: parts[i]["end"] - parts[i]["start"])
        for begin in range(0, len(missing), _MEL_BATCH):
            self._compute([(keys[i], parts[i]) for i in missing[begin : begin + _MEL_BATCH]])
        return [self._mels[key].float() for key in keys]

    def _compute(self, items: list[tuple[tuple[str, float], dict[str, Any]]]) -> None:
        clips = [self.samples(part) for _, part in items]
        longest = max(len(clip) for clip in clips)
        batch = torch.stack([torch.nn.functional.pad(c, (0, longest - len(c))) for c in clips])
        frames = [len(clip) // HOP_SAMPLES for clip in clips]
        for (key, _), mel, count in zip(items, log_mel(batch), frames, strict=True):
            self._mels[key] = mel[:, :count].half()


def question_part(row: dict[str, Any]) -> dict[str, Any]:
    """The audio part of a chat row's last user message."""
    return next(m for m in reversed(row["messages"]) if m["role"] == "user")["content"][0]


def answer_text(row: dict[str, Any]) -> str:
    """The text of a chat row's answer."""
    return next(p["text"] for p in row["messages"][-1]["content"] if p["type"] == "text")
