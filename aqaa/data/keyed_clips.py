"""The clips of a corpus, of manifests or of one: what is to be encoded, under which key.

Letters: T samples.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aqaa import lineage
from aqaa.audio.file import PEAK, file_duration_s, prepare
from aqaa.data.corpus import (
    SPLITS,
    Corpus,
    is_corpus,
    question_keys,
    question_part,
    seconds,
)
from aqaa.data.manifest import clip, manifests_of, read_manifest, sound_path
from aqaa.errors import UsageError
from aqaa.storage import sha256_file, tree_hash

QUESTION_BOOKS = ("both", "linguistic")


@dataclass(frozen=True)
class Clip:
    """An audio part of a row, under ``key``; ``bare``: it needs the linguistic book alone."""

    key: str
    part: dict[str, Any]
    seconds: float
    bare: bool = False


@dataclass(frozen=True)
class Source:
    """Clips of one place.

    ``hash`` names its content; ``prepared``: clips are whole groups at a level already, as a corpus
    keeps them, and are heard as they are.
    """

    folder: Path
    clips: list[Clip]
    hash: str
    prepared: bool

    def sound(self, clip_: Clip, peak: float) -> Tensor:
        """Samples (T,) of a clip at 16 kHz, at the level that tokenizers of ``peak`` know.

        Raises:
            UsageError: the file cannot be read, or what is in it is no speech.
        """
        waveform = clip(clip_.part, self.folder)
        if not self.prepared:
            return torch.from_numpy(prepare(waveform, peak=peak).samples)
        samples = waveform.samples
        if peak != PEAK:
            samples = samples * np.float32(peak / max(1e-9, float(np.abs(samples).max())))
        return torch.from_numpy(samples)


def source(path: str | Path, *, question_books: str = "both", verify: bool = True) -> Source:
    """The clips of a corpus, or every audio part of one aqaa-jsonl manifest or a folder of them.

    A corpus's keys are ``<split>/<row id>`` and ``answers/<answer id>``; a manifest's are
    ``<its name>/<row id>``, with ``/<number>`` where a row has several.

    The hash of a folder with a MANIFEST.sha256 covers every byte. That of other manifests covers
    their names and bytes and the size of every sound file they name, so that it is had without
    reading sound; a sound file replaced by another of the same size it does not see.

    Args:
        path: folder or file.
        question_books: ``both``, or ``linguistic``: questions in that book alone.
        verify: hold a folder against its MANIFEST.sha256, which reads every file.

    Raises:
        UsageError: there is no such place, or two clips would have one key.
    """
    path = Path(path)
    if question_books not in QUESTION_BOOKS:
        raise UsageError(f"question_books={question_books} is neither both nor linguistic")
    if not path.exists() or (verify and tree_hash(path if path.is_dir() else path.parent)):
        lineage.parent(path)
    bare = question_books == "linguistic"
    if not is_corpus(path):
        manifests = [path] if path.is_file() else manifests_of(path)
        clips = [c for manifest in manifests for c in _manifest_clips(manifest, bare=bare)]
        folder = manifests[0].parent
        hash_ = tree_hash(path) or _hash(manifests, clips, folder)
        return Source(folder, _distinct(clips, path), hash_, False)
    corpus = Corpus(path)
    clips = [_clip(f"answers/{k}", row["audio"], path) for k, row in corpus.answers.items()]
    for split in SPLITS:
        for row in corpus.rows(split):
            question_part(row)  # or nothing is asked aloud
            clips += [
                _clip(f"{split}/{key}", part, path, bare)
                for key, part in question_keys(row)
                if "ref" not in part
            ]
    return Source(path, _distinct(clips, path), tree_hash(path), True)


def _manifest_clips(path: Path, *, bare: bool) -> list[Clip]:
    clips = []
    for row in read_manifest(path):
        if not isinstance(row.get("id"), str):
            raise UsageError(f"{path} holds a row without an id; `aqaa data validate` names it")
        parts = [(part, human) for part, human in audio_parts(row) if "path" in part]
        for number, (part, human) in enumerate(parts):
            key = f"{path.stem}/{row['id']}" + (f"/{number}" if len(parts) > 1 else "")
            clips.append(_clip(key, part, path.parent, bare and human))
    return clips


def _hash(manifests: Sequence[Path], clips: Sequence[Clip], folder: Path) -> str:
    """Names the bytes of manifests and the sizes of the files they name."""
    lines = [f"{sha256_file(path)}  {path.name}" for path in manifests]
    names = sorted({c.part["path"] for c in clips})
    lines += [f"{sound_path(name, folder).stat().st_size}  {name}" for name in names]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def audio_parts(row: dict[str, Any]) -> list[tuple[dict[str, Any], bool]]:
    """Every audio part of a row of any kind, in order, and whether the human says it."""
    found = [(row[name], False) for name in ("audio", "prompt") if isinstance(row.get(name), dict)]
    for name in ("messages", "prompt", "chosen", "rejected"):
        messages = row.get(name)
        for message in messages if isinstance(messages, list) else []:
            for part in message["content"]:
                if part["type"] == "audio":
                    found.append((part, message["role"] != "assistant"))
    return found


def _clip(key: str, part: dict[str, Any], folder: Path, bare: bool = False) -> Clip:
    length_s = seconds(part)
    if part.get("end") is None:
        if "path" not in part:
            raise UsageError(f"the clip {key} names no file")
        length_s = file_duration_s(sound_path(part["path"], folder)) - (part.get("start") or 0.0)
    return Clip(key, part, length_s, bare)


def _distinct(clips: list[Clip], place: Path) -> list[Clip]:
    seen: set[str] = set()
    for found in clips:
        if found.key in seen:
            raise UsageError(f"{place} has two clips {found.key}: ids must differ")
        seen.add(found.key)
    if not clips:
        raise UsageError(f"{place} holds no clip to encode")
    return clips
