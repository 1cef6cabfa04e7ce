"""What a manifest's sound may be like: present, readable, plausible, not twice, not leaked."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aqaa.audio.file import SILENT_PEAK, file_rate_hz
from aqaa.data.manifest import clip, sound_path
from aqaa.data.validate_rows import Add, AudioPart, Row
from aqaa.errors import UsageError
from aqaa.signals import AUDIO_TOKEN_RATE_HZ, QUESTION_RATE_HZ, SEMANTIC_RATE_HZ

CLIPPED_LEVEL, CLIPPED_SHARE = 0.999, 0.01
SILENT_SHARE = 0.8
WORDS_PER_S = (0.3, 8.0)  # slower or faster is no speech
_SILENCE_BLOCK_SAMPLES = QUESTION_RATE_HZ // 50

Place = tuple[str, float, float | None]  # path, start_s, end_s


def place_of(part: dict[str, Any]) -> Place:
    """What tells one stretch of sound from another."""
    return part.get("path", ""), part.get("start") or 0.0, part.get("end")


@dataclass
class Ear:
    """Checks sound row after row and remembers what it heard.

    Args:
        root: the folder that paths are relative to.
        deep: open the files.
        max_tokens: rows longer than this are reported.
        trained: stretches of user audio that a training manifest holds.
    """

    root: Path
    deep: bool
    max_tokens: int
    trained: frozenset[Place] = frozenset()
    _first_by_hash: dict[str, Place] = field(default_factory=dict)
    _seconds_of: dict[Place, float | None] = field(default_factory=dict)

    def check(self, row: Row, add: Add) -> None:
        """Report what is wrong with the sound of ``row``."""
        seconds = [self._check_part(audio, add) for audio in row.audio]
        tokens = row.words + round(sum(filter(None, seconds)) * AUDIO_TOKEN_RATE_HZ)
        if tokens > self.max_tokens:
            add("W104", f"about {tokens} tokens are more than max_tokens={self.max_tokens}")

    def _check_part(self, audio: AudioPart, add: Add) -> float | None:
        """Check one part; its length in seconds, None where it is not known."""
        part = audio.part
        if "path" not in part:
            codes = part.get("codes")
            return _seconds_of_codes(codes) if isinstance(codes, dict) else None
        place = place_of(part)
        if audio.human and place in self.trained:
            add("W106", f"{_named(place)} is in the training manifest too")
        seconds = self._check_file(part, place, add)
        if seconds is not None:
            self._check_pace(audio.text, seconds, add)
        return seconds

    def _check_file(self, part: dict[str, Any], place: Place, add: Add) -> float | None:
        path = self._found(part["path"], add)
        if path is None:
            return None
        if part.get("sr", QUESTION_RATE_HZ) < QUESTION_RATE_HZ:
            add("W101", f"{path} is declared at {part['sr']} Hz, below {QUESTION_RATE_HZ}")
        if self.deep:
            if place not in self._seconds_of:
                self._seconds_of[place] = self._listen(part, path, add)
            return self._seconds_of[place]
        if not path.stat().st_size:
            add("E005", f"audio file {path} is empty")
            return None
        return None if place[2] is None else place[2] - place[1]

    def _found(self, name: str, add: Add) -> Path | None:
        """Where the file lies."""
        try:
            path = sound_path(name, self.root)
            there = path.is_file()
        except UsageError as error:
            add("E004", str(error))
            return None
        except OSError:  # a name too long to be a file's
            there = False
        if not there:
            add("E004", f"audio file {self.root / name} does not exist")
            return None
        return path

    def _listen(self, part: dict[str, Any], path: Path, add: Add) -> float | None:
        """Open one stretch; its length in seconds."""
        try:
            rate_hz = file_rate_hz(path)
            waveform = clip(part, self.root)
        except UsageError as error:
            add("E005", str(error))
            return None
        if rate_hz < QUESTION_RATE_HZ and "sr" not in part:
            add("W101", f"{path} is stored at {rate_hz} Hz, below {QUESTION_RATE_HZ}")
        self._check_level(waveform.samples, path, add)
        digest = hashlib.sha256(waveform.samples.tobytes()).hexdigest()
        place = place_of(part)
        first = self._first_by_hash.setdefault(digest, place)
        if first != place:
            add("W105", f"{_named(place)} sounds the same as {_named(first)}")
        return waveform.duration_s

    def _check_level(self, samples: Any, path: Path, add: Add) -> None:
        loudness = np.abs(samples)
        clipped = float((loudness >= CLIPPED_LEVEL).mean())
        if clipped > CLIPPED_SHARE:
            add("W102", f"{clipped:.0%} of {path} is clipped")
        blocks = loudness[: len(loudness) // _SILENCE_BLOCK_SAMPLES * _SILENCE_BLOCK_SAMPLES]
        if len(blocks):
            quiet = blocks.reshape(-1, _SILENCE_BLOCK_SAMPLES).max(axis=1) < SILENT_PEAK
            if quiet.mean() > SILENT_SHARE:
                add("W102", f"{quiet.mean():.0%} of {path} is silent")

    def _check_pace(self, text: str, seconds: float, add: Add) -> None:
        words = len(text.split())
        slowest, fastest = WORDS_PER_S
        if words and not slowest <= words / max(seconds, 1e-3) <= fastest:
            wanted = f"between {slowest} and {fastest} a second"
            add("W103", f"{words} words in {seconds:.2f} s are not {wanted}")


def _named(place: Place) -> str:
    path, start_s, end_s = place
    return f"{path} {start_s:g}..{'end' if end_s is None else f'{end_s:g}'} s"


def _seconds_of_codes(codes: dict[str, Any]) -> float | None:
    semantic = codes.get("semantic")
    return len(semantic) / float(SEMANTIC_RATE_HZ) if isinstance(semantic, list) else None
