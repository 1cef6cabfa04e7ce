"""The training tasks: what a row of a corpus becomes, turn by turn."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from aqaa.data.corpus import Corpus, answer_text, question_part
from aqaa.data.domain import STYLES
from aqaa.data.manifest import HUMAN
from aqaa.data.token_store import TokenStore
from aqaa.errors import UsageError
from aqaa.signals import Dialogue, Turn

_STYLE_WORDS = {style.name: style.words for style in STYLES}


@dataclass(frozen=True)
class Material:
    """What tasks are built from: a chat row and the codes of its question and answer."""

    row: dict[str, Any]
    question: Turn
    answer: Turn

    @property
    def style_words(self) -> str:
        """Words that ask for the answer's style, '' for a plain one."""
        return _STYLE_WORDS[self.row["meta"]["style"]]


def _system(text: str) -> Turn:
    return Turn("system", text)


def _continuation(m: Material) -> Dialogue:
    return [_system("continue"), Turn("assistant", speech=m.answer.speech, loss=True)]


def _asr(m: Material) -> Dialogue:
    words = question_part(m.row)["text"]
    return [_system("transcribe"), m.question, Turn("assistant", words, loss=True)]


def _tts(m: Material) -> Dialogue:
    words = f"{m.answer.text} {m.style_words}".strip()
    spoken = Turn("assistant", speech=m.answer.speech, loss=True)
    return [_system("speak"), Turn("human", words), spoken]


def _interleaved(m: Material) -> Dialogue:
    # The style is named, or the same text would have five different sounds.
    return [_system(f"read {m.style_words}".strip()), m.answer]


def _tqta(m: Material) -> Dialogue:
    words = question_part(m.row)["text"]
    return [_system("write"), Turn("human", words), Turn("assistant", m.answer.text, loss=True)]


def _aqta(m: Material) -> Dialogue:
    return [_system("write"), m.question, Turn("assistant", m.answer.text, loss=True)]


def _taqta(m: Material) -> Dialogue:
    heard_and_read = replace(m.question, text=question_part(m.row)["text"])
    return [_system("write"), heard_and_read, Turn("assistant", m.answer.text, loss=True)]


def _aqtaa(m: Material) -> Dialogue:
    return [m.question, m.answer]


def _aqaa(m: Material) -> Dialogue:
    return [_system("sound"), m.question, Turn("assistant", speech=m.answer.speech, loss=True)]


# Formats as the paper names them: T text, A audio, Q query, A answer.
TASKS: dict[str, Callable[[Material], Dialogue]] = {
    "continuation": _continuation,
    "asr": _asr,
    "tts": _tts,
    "interleaved": _interleaved,
    "tqta": _tqta,
    "aqta": _aqta,
    "aqtaa": _aqtaa,
    "aqaa": _aqaa,
    "taqta": _taqta,
}


class Materials:
    """Rows of one split with their codes, as turns: one question and its answer a row.

    A row is read and its codes looked up when it is asked for; none is kept.
    A row's system message, ``loss`` and ``weight`` are not read: the task decides what is learned.
    """

    def __init__(self, corpus: Corpus, store: TokenStore, split: str) -> None:
        self._rows = corpus.lazy_rows(split)
        self._store = store
        self._split = split

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> Material:
        row, split, store = self._rows[place], self._split, self._store
        asked = sum(message["role"] in HUMAN for message in row["messages"])
        if asked != 1:
            raise UsageError(
                f"row {row['id']} of {split}.jsonl has {asked} user messages: only dialogues of "
                f"one question and one answer can be trained on"
            )
        question = Turn("human", speech=[store[f"{split}/{row['id']}"]])
        spoken = store[f"answers/{row['meta']['answer_id']}"]
        return Material(row, question, Turn("assistant", answer_text(row), [spoken], loss=True))

    def __iter__(self) -> Iterator[Material]:
        return (self[place] for place in range(len(self)))
