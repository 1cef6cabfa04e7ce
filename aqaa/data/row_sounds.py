"""The sounds that a row of a manifest holds, and how each is heard: the one place that decides.

Letters: T samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqaa.audio.file import PEAK, prepare, read_audio, trim
from aqaa.data.manifest import HUMAN, sound_path
from aqaa.errors import UsageError
from aqaa.signals import QUESTION_RATE_HZ

_FLAT, _TURNS = ("audio", "prompt"), ("messages", "prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Sound:
    """An audio part of a row and what the row says of it; None where it says nothing.

    ``field`` of the row holds it, in its message number ``turn``; ``human``: the human says it.
    """

    part: dict[str, Any]
    field: str
    turn: int = 0
    human: bool = False
    text: str | None = None
    speaker: str | None = None
    style: Any = None

    @property
    def own(self) -> bool:
        """Whether its file is this row's: what a part has by ``ref`` is a row of its own."""
        return isinstance(self.part.get("path"), str) and "ref" not in self.part


def sounds(row: dict[str, Any]) -> list[Sound]:
    """Every audio part of a row of any kind, in order."""
    voice = meta.get("voice") if isinstance(meta := row.get("meta"), dict) else None
    speaker, found = row.get("speaker") or voice, []
    for name in _FLAT:
        if isinstance(part := row.get(name), dict):
            text = part.get("text") or (row.get("text") if name == "audio" else None)
            style = row.get("style")
            found.append(Sound(part, name, text=_words(text), speaker=speaker, style=style))
    for name in _TURNS:
        for turn, message in enumerate(_objects(row.get(name))):
            found += _of_message(message, name, turn, voice)
    return found


def _of_message(message: dict[str, Any], name: str, turn: int, voice: Any) -> Iterator[Sound]:
    content, human = _objects(message.get("content")), message.get("role") in HUMAN
    heard = [part for part in content if part.get("type") == "audio"]
    written = " ".join(str(p.get("text", "")) for p in content if p.get("type") == "text")
    for part in heard:
        # An answer's text stands beside its sound; what a human writes beside it is something else.
        text = part.get("text") or (written if len(heard) == 1 and not human else None)
        speaker = message.get("speaker") or (voice if human else None)
        yield Sound(part, name, turn, human, _words(text), speaker, message.get("style"))


def _objects(listed: Any) -> list[dict[str, Any]]:
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _words(text: Any) -> str | None:
    return text if isinstance(text, str) and text else None


def keyed(manifest: str, row: dict[str, Any]) -> list[tuple[str, Sound]]:
    """A row's own sounds by the keys that token stores have for them.

    ``<manifest>/<row id>``, with ``/<number>`` behind it where a row has several.
    """
    own = [sound for sound in sounds(row) if sound.own]
    if own and not isinstance(row.get("id"), str):
        raise UsageError(f"{manifest}.jsonl has a row without an id; `aqaa data validate` names it")
    key = f"{manifest}/{row.get('id')}"
    return [(f"{key}/{i}" if len(own) > 1 else key, sound) for i, sound in enumerate(own)]


def is_corpus(folder: str | Path) -> bool:
    """Whether clips are whole groups at a level already; else they have yet to be made so."""
    return (Path(folder) / "domain.json").is_file()


def heard(
    part: dict[str, Any], folder: Path, *, rate_hz: int = QUESTION_RATE_HZ, peak: float = PEAK
) -> NDArray[np.float32]:
    """The sound of a part (T,) as tokenizers and the full-size vocoder hear it.

    A clip of a corpus is whole groups and stays whole; any other loses the silence at its ends, and
    is filled up to whole groups at the tokenizers' rate.

    Args:
        part: an audio part.
        folder: of its manifest.
        rate_hz: of the samples.
        peak: their level.

    Raises:
        UsageError: the file cannot be read, or what is in it is no speech.
    """
    waveform = read_audio(
        sound_path(part["path"], folder),
        rate_hz=rate_hz,
        start_s=part.get("start") or 0.0,
        end_s=part.get("end"),
    )
    samples = waveform.samples
    if is_corpus(folder):
        if (rate_hz, peak) == (QUESTION_RATE_HZ, PEAK):
            return samples  # as a corpus keeps it
    elif rate_hz == QUESTION_RATE_HZ:
        return prepare(waveform, peak=peak).samples
    loudest = float(np.abs(samples).max())
    trimmed = samples if is_corpus(folder) else trim(samples, rate_hz)
    return trimmed * np.float32(peak / loudest if loudest else 1.0)
