"""Dialogues as rounds: a question and its answer each, what is said and what is written."""

from dataclasses import dataclass, replace
from typing import Any

from aqaa.data.formats.sounds import Sounds
from aqaa.data.manifest import HUMAN

_NOT_SPOKEN = (
    "a corpus learns spoken answers, with their words, to spoken questions; other rows are lost"
)


@dataclass(frozen=True)
class Spoken:
    """One thing said: its sound, its words, who says it."""

    part: dict[str, Any]
    text: str
    speaker: str


@dataclass(frozen=True)
class Said:
    """A message: its words and its stretches of sound, several in an answer of several labels."""

    text: str
    spoken: list[Spoken]


@dataclass(frozen=True)
class Round:
    """A question, its answer, and whether the answer is to be learnt."""

    question: Said
    answer: Said
    loss: bool


def rounds(row: dict[str, Any], sounds: Sounds) -> list[Round]:
    """The rounds of a dialogue, or of a clip with its words, which answers itself.

    Only answers that can be learnt are: spoken, with words, to one spoken question. A row without
    any is lost, and gives no rounds.
    """
    if "path" in row.get("audio", {}) and row.get("text"):
        clip = Said(row["text"], [Spoken(row["audio"], row["text"], _speaker(row))])
        return [Round(clip, clip, loss=True)]
    turns = [turn for turn in row.get("messages", []) if turn["role"] != "system"]
    found = []
    for asked, answered in zip(turns[::2], turns[1::2], strict=False):
        question, answer = _said(asked), _said(answered)
        fits = len(question.spoken) == 1 and bool(answer.spoken) and all(
            said.text for said in answer.spoken
        )
        found.append(Round(question, answer, fits and bool(answered.get("loss", True))))
    taken = [turn["role"] in HUMAN for turn in turns] == [True, False] * (len(turns) // 2)
    if not taken or not any(round_.loss for round_ in found):
        sounds.lose(_NOT_SPOKEN)
        return []
    last = max(i for i, round_ in enumerate(found) if round_.loss)
    if found[last + 1 :]:
        sounds.lose("what follows the last spoken answer of a dialogue is lost")
    for round_ in found[: last + 1]:
        if round_.question.spoken and not round_.question.text:
            sounds.lose(
                "questions without their words: asr, tqta and a history of text cannot use them"
            )
    return found[: last + 1]


def _said(message: dict[str, Any]) -> Said:
    """What a message says; where it has several sounds, the text before each is its own."""
    spoken: list[Spoken] = []
    words: list[str] = []
    for part in message["content"]:
        if part["type"] == "text":
            words.append(part["text"])
        elif "path" in part:
            text = part.get("text") or " ".join(words).strip()
            spoken.append(Spoken(part, text, _speaker(message)))
            words = []
    rest = " ".join(words).strip()
    if spoken and rest:  # it stands behind the last sound
        last = spoken[-1]
        text = last.text if last.part.get("text") else f"{last.text} {rest}".strip()
        spoken[-1] = replace(last, text=text)
    text = " ".join(one.text for one in spoken) if spoken else rest
    return Said(text, spoken)


def _speaker(owner: dict[str, Any]) -> str:
    return str(owner.get("speaker") or "unknown")
