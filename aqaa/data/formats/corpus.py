"""A corpus folder, what every stage trains on: clips as they will be heard, questions with answers.

A spoken question with a spoken answer becomes a row; a clip with its words becomes one whose answer
is the clip itself, which serves transcribing, speaking and continuing. Of a dialogue of several
turns every answer becomes a row, with what came before it, or the whole dialogue becomes one. Sound
is brought to 16 kHz mono, trimmed, set to one level and filled up to whole groups of 120 ms; many
clips share a file.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqaa.audio.file import prepare, read_audio, write_audio
from aqaa.data.corpus import SPLITS
from aqaa.data.domain import PLAIN
from aqaa.data.espeak import Espeak
from aqaa.data.formats.rounds import Round, Said, Spoken, rounds
from aqaa.data.formats.sounds import Placed, Sounds
from aqaa.data.manifest import write_manifest
from aqaa.data.shards import Clip
from aqaa.errors import UsageError
from aqaa.signals import QUESTION_RATE_HZ
from aqaa.storage import write_json

ONE_IN = 20  # dialogues for validation, and as many for the test
_FILE_CLIPS = 100
_Sound = NDArray[np.float32]


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
class _Placed:
    """A round whose clips have their places: parts of the question's and the answer's sounds."""

    question: list[dict[str, Any]]
    answer: list[dict[str, Any]]
    said: Round


class _Folder:
    """The corpus as it grows.

    Args:
        sounds: where it is written.
        whole: one row a dialogue, rather than one for every answer.
    """

    def __init__(self, sounds: Sounds, *, whole: bool) -> None:
        (sounds.folder / "audio").mkdir(exist_ok=True)
        self.phones = _Phones(sounds)
        self.rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self.answers: list[dict[str, Any]] = []
        self.dialogues = 0
        self._sounds = sounds
        self._whole = whole
        self._tapes = {split: _Tape(sounds.folder, split) for split in (*SPLITS, "answers")}

    def add(self, name: str, listed: list[Round]) -> None:
        """Write the rows of a dialogue, all for one split; none if a clip cannot be heard."""
        said = {id(s): s for r in listed for one in (r.question, r.answer) for s in one.spoken}
        clips = {place: clip for place, s in said.items()
                 if (clip := _heard(s, self._sounds)) is not None}  # fmt: skip
        if len(clips) < len(said):
            return
        split = {0: "validation", 1: "test"}.get(self.dialogues % ONE_IN, "train")
        self.dialogues += 1
        names = [name if len(listed) == 1 else f"{name}-{i + 1}" for i in range(len(listed))]
        placed = [
            self._place(place, round_, clips, split=split)
            for place, round_ in zip(names, listed, strict=True)
        ]
        self.rows[split] += (
            [_row(name, placed, {})] if self._whole else _rows_of_answers(names, placed)
        )

    def _place(
        self, name: str, said: Round, clips: dict[int, _Sound], *, split: str
    ) -> _Placed:
        def put(tape: str, spoken: Spoken) -> dict[str, Any]:
            return self._tapes[tape].add(clips[id(spoken)], self.phones(spoken.text))

        own = said.question is not said.answer  # not a clip that answers itself
        questions = [put(split, spoken) for spoken in said.question.spoken] if own else []
        answers = [put("answers", spoken) for spoken in said.answer.spoken]
        several = len(answers) > 1
        for i, (spoken, part) in enumerate(zip(said.answer.spoken, answers, strict=True)):
            place = f"{name}.{i + 1}" if several else name
            self.answers.append(_answer_row(place, spoken, part))
            answers[i] = {**part, "ref": place}
        return _Placed(questions if own else [_bare(answers[0], phones=True)], answers, said)

    def close(self) -> None:
        """Write what is held."""
        for tape in self._tapes.values():
            tape.close()
        if not self.rows["train"]:
            raise UsageError(
                f"{self.dialogues} rows can be heard; a corpus needs 3 at least, better thousands"
            )
        for split, listed in self.rows.items():
            write_manifest(self._sounds.folder / f"{split}.jsonl", listed)
        write_manifest(self._sounds.folder / "answers.jsonl", self.answers)
        _write_domain(self._sounds.folder, self.rows, self.answers, self.phones.seen)


def write(rows: Iterable[Placed], name: str, sounds: Sounds, *, whole: bool = False) -> None:
    """Write the corpus; one dialogue in twenty is for validation, one for the test."""
    folder = _Folder(sounds, whole=whole)
    for _, row in rows:
        if listed := rounds(row, sounds):
            folder.add(row["id"], listed)
    folder.close()


write_whole = partial(write, whole=True)


def _rows_of_answers(names: list[str], placed: list[_Placed]) -> list[dict[str, Any]]:
    """A row for every answer that is learnt; each sound of a question has its own in one of them.

    In the others it goes by ``ref``, the end of its key in a token store.
    """
    rows, keys = [], dict[int, str]()
    for i, (name, last) in enumerate(zip(names, placed, strict=True)):
        if not last.said.loss:
            continue
        before = [_Placed(p.question, p.answer, _unlearnt(p.said)) for p in placed[:i]]
        rows.append(_row(name, [*before, last], keys))
        keys |= {k: f"{name}/{k}" for k in range(i) if k not in keys}
        keys[i] = name
    return rows


def _unlearnt(said: Round) -> Round:
    return Round(said.question, said.answer, loss=False)


def _row(name: str, placed: list[_Placed], keys: dict[int, str]) -> dict[str, Any]:
    """A chat row; ``keys`` of the questions whose sound another row has."""
    messages: list[dict[str, Any]] = []
    for k, round_ in enumerate(placed):
        question, answer = round_.said.question, round_.said.answer
        ref = {"ref": keys[k]} if k in keys else {}
        asked = [
            {"type": "audio", **part, "text": spoken.text, **ref}
            for part, spoken in zip(round_.question, question.spoken, strict=True)
        ]
        messages.append({"role": "user", "content": asked or _text(question)})
        messages.append({"role": "assistant", "loss": round_.said.loss, "style": PLAIN.name,
                         "content": _reply(answer, round_.answer)})  # fmt: skip
    last = placed[-1].said
    meta = {"style": PLAIN.name, "answer_id": placed[-1].answer[0]["ref"],
            "voice": last.question.spoken[0].speaker}  # fmt: skip
    return {"id": name, "kind": "chat", "messages": messages, "meta": meta}


def _reply(said: Said, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An answer's words, each stretch of sound behind its own."""
    if not parts:
        return _text(said)
    return [
        part
        for spoken, place in zip(said.spoken, parts, strict=True)
        for part in (
            {"type": "text", "text": spoken.text},
            {"type": "audio", **_bare(place), "ref": place["ref"]},
        )
    ]


def _text(said: Said) -> list[dict[str, Any]]:
    return [{"type": "text", "text": said.text}]


def _bare(part: dict[str, Any], *, phones: bool = False) -> dict[str, Any]:
    """Where a clip lies, and nothing that belongs to it elsewhere."""
    kept = ("path", "start", "end", *(("phones",) if phones else ()))
    return {key: part[key] for key in kept if key in part}


def _heard(spoken: Spoken, sounds: Sounds) -> _Sound | None:
    start_s, end_s = spoken.part.get("start") or 0.0, spoken.part.get("end")
    waveform = read_audio(spoken.part["path"], start_s=start_s, end_s=end_s)
    try:
        samples: _Sound = prepare(waveform).samples
    except UsageError:
        sounds.lose("clips that are silent or below 0.12 s; their rows are lost")
        return None
    return samples


def _answer_row(name: str, answer: Spoken, part: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "kind": "tts", "text": answer.text, "audio": part,
            "speaker": answer.speaker, "style": PLAIN.name}  # fmt: skip


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
        for row in (row for listed in written.values() for row in listed):
            for part in (part for message in row["messages"] for part in message["content"]):
                yield from part.get("text", "").split()

    domain = {
        "counts": {split: len(listed) for split, listed in written.items()},
        "answers": list(dict.fromkeys(row["text"] for row in answers)),
        "words": sorted(set(words())),
        "phones": sorted(phones),
        "styles": [PLAIN.name],
        "speakers": sorted({row["speaker"] for row in answers}),
    }
    write_json(folder / "domain.json", domain)
