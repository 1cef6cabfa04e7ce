"""A corpus folder, what every stage trains on: clips as they will be heard, questions with answers.

A spoken question with a spoken answer becomes a row; a clip with its words becomes one whose answer
is the clip itself, which serves transcribing, speaking and continuing. Sound is brought to 16 kHz
mono, trimmed, set to one level and filled up to whole groups of 120 ms; many clips share a file.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqaa.audio.file import prepare, read_audio, write_audio
from aqaa.data.corpus import SPLITS
from aqaa.data.domain import PLAIN
from aqaa.data.espeak import Espeak
from aqaa.data.formats.sounds import Placed, Sounds
from aqaa.data.manifest import HUMAN, write_manifest
from aqaa.data.shards import Clip
from aqaa.errors import UsageError
from aqaa.signals import QUESTION_RATE_HZ
from aqaa.storage import write_json

ONE_IN = 20  # rows for validation, and as many for the test
_FILE_CLIPS = 100
_ONE_TURN = "a corpus holds one spoken question and its spoken answer a row; other rows are lost"


@dataclass
class _Tape:
    """Clips one after another, in files of a hundred."""

    folder: Path
    name: str
    held: list[NDArray[np.float32]] = field(default_factory=list)
    files: int = 0

    def add(self, samples: NDArray[np.float32], phones: list[str]) -> dict[str, Any]:
        """Append (T,); where it lies."""
        start = sum(map(len, self.held))
        path = f"audio/{self.name}_{self.files:04}.wav"
        self.held.append(samples)
        part = Clip(path, start, start + len(samples), tuple(phones)).part()
        if len(self.held) == _FILE_CLIPS:
            self.close()
        return part

    def close(self) -> None:
        """Write what is held."""
        if self.held:
            path = self.folder / f"audio/{self.name}_{self.files:04}.wav"
            write_audio(path, np.concatenate(self.held), QUESTION_RATE_HZ)
            self.held, self.files = [], self.files + 1


@dataclass(frozen=True)
class _Spoken:
    """One thing said: its sound, its words, who says it."""

    part: dict[str, Any]
    text: str
    speaker: str


def write(rows: Iterable[Placed], name: str, sounds: Sounds) -> None:
    """Write the corpus; one row in twenty is for validation, one for the test."""
    (sounds.folder / "audio").mkdir(exist_ok=True)
    phones = _Phones(sounds)
    written: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    answers: list[dict[str, Any]] = []
    tapes = {split: _Tape(sounds.folder, split) for split in (*SPLITS, "answers")}
    number = 0
    for _, row in rows:
        if (pair := _pair(row, sounds)) is None:
            continue
        question, answer = pair
        said = [("answers", answer)]
        if question is not answer:
            said.insert(0, ("", question))
        clips = [_heard(spoken, sounds) for _, spoken in said]
        if any(clip is None for clip in clips):
            continue
        split = {0: "validation", 1: "test"}.get(number % ONE_IN, "train")
        number += 1
        places = [
            tapes[tape or split].add(clip, phones(spoken.text))
            for (tape, spoken), clip in zip(said, clips, strict=True)
            if clip is not None
        ]
        answers.append(_answer_row(row["id"], answer, places[-1]))
        written[split].append(_chat_row(row["id"], question, answer, places))
    for tape in tapes.values():
        tape.close()
    if not written["train"]:
        raise UsageError(f"{number} rows can be heard; a corpus needs 3 at least, better thousands")
    for split, listed in written.items():
        write_manifest(sounds.folder / f"{split}.jsonl", listed)
    write_manifest(sounds.folder / "answers.jsonl", answers)
    _write_domain(sounds.folder, written, answers, phones.seen)


def _pair(row: dict[str, Any], sounds: Sounds) -> tuple[_Spoken, _Spoken] | None:
    """Question and answer of a row, one and the same for a clip with its words."""
    if "path" in row.get("audio", {}) and row.get("text"):
        clip = _Spoken(row["audio"], row["text"], row.get("speaker", "unknown"))
        return clip, clip
    turns = [turn for turn in row.get("messages", []) if turn["role"] != "system"]
    if len(turns) == 2 and turns[0]["role"] in HUMAN:
        question, answer = (_said(turn) for turn in turns)
        if question is not None and answer is not None and answer.text:
            if not question.text:
                sounds.lose("questions without their words: asr and tqta cannot use them")
            return question, answer
    sounds.lose(_ONE_TURN)
    return None


def _said(turn: dict[str, Any]) -> _Spoken | None:
    heard = [p for p in turn["content"] if p["type"] == "audio" and "path" in p]
    words = " ".join(p["text"] for p in turn["content"] if p["type"] == "text").strip()
    if len(heard) != 1:
        return None
    return _Spoken(heard[0], heard[0].get("text") or words, turn.get("speaker", "unknown"))


def _heard(spoken: _Spoken, sounds: Sounds) -> NDArray[np.float32] | None:
    start_s, end_s = spoken.part.get("start") or 0.0, spoken.part.get("end")
    waveform = read_audio(spoken.part["path"], start_s=start_s, end_s=end_s)
    try:
        samples: NDArray[np.float32] = prepare(waveform).samples
    except UsageError:
        sounds.lose("clips that are silent or below 0.12 s; their rows are lost")
        return None
    return samples


def _answer_row(name: str, answer: _Spoken, part: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "kind": "tts", "text": answer.text, "audio": part,
            "speaker": answer.speaker, "style": PLAIN.name}  # fmt: skip


def _chat_row(
    name: str, question: _Spoken, answer: _Spoken, places: list[dict[str, Any]]
) -> dict[str, Any]:
    place = {key: places[-1][key] for key in ("path", "start", "end")}
    reply = [{"type": "text", "text": answer.text}, {"type": "audio", **place, "ref": name}]
    heard = {"type": "audio", **places[0], "text": question.text}
    return {
        "id": name,
        "kind": "chat",
        "messages": [
            {"role": "user", "content": [heard]},
            {"role": "assistant", "loss": True, "style": PLAIN.name, "content": reply},
        ],
        "meta": {"style": PLAIN.name, "answer_id": name, "voice": question.speaker},
    }


class _Phones:
    """Words to phones, where the synthesiser that knows them is installed."""

    def __init__(self, sounds: Sounds) -> None:
        self.seen: set[str] = set()
        self._known: dict[str, list[str]] = {}
        self._sounds = sounds
        try:
            self._espeak: Espeak | None = Espeak()
        except UsageError:
            self._espeak = None

    def __call__(self, text: str) -> list[str]:
        if self._espeak is None:
            self._sounds.lose("no phones without the demo extra: small tokenizers cannot learn")
            return []
        if text not in self._known:
            self._known[text] = self._espeak.phonemes(text) if text else []
        self.seen.update(self._known[text])
        return self._known[text]


def _write_domain(
    folder: Path,
    written: dict[str, list[dict[str, Any]]],
    answers: list[dict[str, Any]],
    phones: set[str],
) -> None:
    def words() -> Iterator[str]:
        for row in answers:
            yield from row["text"].split()
        for listed in written.values():
            for row in listed:
                yield from row["messages"][0]["content"][0]["text"].split()

    domain = {
        "counts": {split: len(listed) for split, listed in written.items()},
        "answers": list(dict.fromkeys(row["text"] for row in answers)),
        "words": sorted(set(words())),
        "phones": sorted(phones),
        "styles": [PLAIN.name],
        "speakers": sorted({row["speaker"] for row in answers}),
    }
    write_json(folder / "domain.json", domain)
