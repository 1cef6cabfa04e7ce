"""The clips of a corpus, of manifests or of one: what is to be encoded, under which key.

Letters: T samples.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqaa import lineage
from aqaa.audio.file import file_duration_s
from aqaa.data.corpus import SPLITS, seconds
from aqaa.data.manifest import manifests_of, read_manifest, sound_path
from aqaa.data.row_sounds import heard, is_corpus, keyed
from aqaa.errors import UsageError
from aqaa.storage import sha256_file, tree_hash

QUESTION_BOOKS = ("both", "linguistic")
_CORPUS = ("answers", *SPLITS)  # manifests of one


@dataclass(frozen=True)
class Clip:
    """An audio part of a row, under ``key``; ``bare``: it needs the linguistic book alone.

    ``seconds`` is 0 where its file cannot be opened: whoever hears the clip says why.
    """

    key: str
    part: dict[str, Any]
    seconds: float
    bare: bool = False


@dataclass(frozen=True)
class Source:
    """Clips of one place, whose content ``hash`` names."""

    folder: Path
    clips: list[Clip]
    hash: str

    def sound(self, clip: Clip, peak: float) -> Tensor:
        """Samples (T,) of a clip at 16 kHz, at the level that tokenizers of ``peak`` know.

        Raises:
            UsageError: the file cannot be read, or what is in it is no speech.
        """
        return torch.from_numpy(heard(clip.part, self.folder, peak=peak))

    def size_bytes(self, clip: Clip) -> int:
        """Size of a clip's file, -1 where there is none: another one is another sound."""
        try:
            return sound_path(clip.part["path"], self.folder).stat().st_size
        except (OSError, UsageError):
            return -1


def source(path: str | Path, *, question_books: str = "both", verify: bool = True) -> Source:
    """The clips of a corpus, or every audio part of one aqaa-jsonl manifest or a folder of them.

    A corpus's keys are ``<split>/<row id>`` and ``answers/<answer id>``; a manifest's are
    ``<its name>/<row id>``, with ``/<number>`` where a row has several.

    The hash of a folder with a MANIFEST.sha256 covers every byte. That of other manifests covers
    their names and bytes, but no sound, so that mended sound does not make finished work void;
    an extraction keeps the size of each clip's file instead and takes up again what has another.
    It does not see sound replaced by other sound of the same size in bytes.

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
    manifests = _manifests(path)
    folder = manifests[0].parent
    clips = [
        _clip(key, sound.part, folder, bare and sound.human)
        for manifest in manifests
        for row in read_manifest(manifest)
        for key, sound in keyed(manifest.stem, row)
    ]
    hash_ = tree_hash(path)
    if not hash_ and not is_corpus(path):
        hash_ = _hash(manifests)
    return Source(folder, _distinct(clips, path), hash_)


def _manifests(path: Path) -> list[Path]:
    """The manifest itself, a corpus's in the order its store has, or a folder's by name."""
    if path.is_file():
        return [path]
    return [path / f"{n}.jsonl" for n in _CORPUS] if is_corpus(path) else manifests_of(path)


def _hash(manifests: Sequence[Path]) -> str:
    """Names the bytes of manifests and how they are called."""
    lines = [f"{sha256_file(path)}  {path.name}" for path in manifests]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _clip(key: str, part: dict[str, Any], folder: Path, bare: bool) -> Clip:
    for name in ("start", "end"):
        if not isinstance(part.get(name), int | float | None):
            raise UsageError(f"{key} has {name}={part[name]!r}: it is in seconds, a number")
    length_s = seconds(part)
    if part.get("end") is None:
        with contextlib.suppress(UsageError):
            whole_s = file_duration_s(sound_path(part["path"], folder))
            length_s = max(0.0, whole_s - (part.get("start") or 0.0))
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
