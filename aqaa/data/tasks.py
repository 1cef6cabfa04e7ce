"""The training tasks: what a row of a corpus becomes, turn by turn."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from aqaa.data.corpus import Corpus, answer_text, question_keys
from aqaa.data.domain import STYLES
from aqaa.data.manifest import HUMAN
from aqaa.data.token_store import TokenStore
from aqaa.errors import UsageError
from aqaa.signals import CodePair, Dialogue, Turn

_STYLE_WORDS = {style.name: style.words for style in STYLES}
_Form = Callable[[Turn], Turn]


@dataclass(frozen=True)
class Material:
    """What tasks are built from: a chat row, its last question and answer, and those before.

    A question's ``words`` are what it says.
    """

    row: dict[str, Any]
    question: Turn
    answer: Turn
    earlier: list[tuple[Turn, Turn]] = field(default_factory=list)

    @property
    def style_words(self) -> str:
        """Words that ask for the answer's style, '' for a plain one."""
        return _STYLE_WORDS[self.row["meta"]["style"]]


def _system(text: str) -> Turn:
    return Turn("system", text)


def _continuation(m: Material) -> Dialogue:
    return [_system("continue"), _spoken(m.answer)]


def _asr(m: Material) -> Dialogue:
    return [_system("transcribe"), m.question, Turn("assistant", m.question.words, loss=True)]


def _tts(m: Material) -> Dialogue:
    words = f"{m.answer.text} {m.style_words}".strip()
    return [_system("speak"), Turn("human", words), _spoken(m.answer)]


def _interleaved(m: Material) -> Dialogue:
    # The style is named, or the same text would have five different sounds.
    return [_system(f"read {m.style_words}".strip()), m.answer]


def _tqta(m: Material) -> Dialogue:
    return [_system("write"), *_rounds(m, lambda asked: Turn("human", asked.words), _written)]


def _aqta(m: Material) -> Dialogue:
    return [_system("write"), *_rounds(m, _as_it_is, _written)]


def _taqta(m: Material) -> Dialogue:
    def heard_and_read(asked: Turn) -> Turn:
        return replace(asked, text=asked.words)

    return [_system("write"), *_rounds(m, heard_and_read, _written)]


def _aqtaa(m: Material) -> Dialogue:
    return _rounds(m, _as_it_is, _as_it_is)


def _aqaa(m: Material) -> Dialogue:
    return [_system("sound"), *_rounds(m, _as_it_is, _spoken)]


def _rounds(m: Material, ask: _Form, answer: _Form) -> Dialogue:
    """All questions and answers in the forms of a format."""
    listed = [*m.earlier, (m.question, m.answer)]
    return [turn for asked, answered in listed for turn in (ask(asked), answer(answered))]


def _as_it_is(turn: Turn) -> Turn:
    return turn


def _written(turn: Turn) -> Turn:
    return Turn("assistant", turn.text, loss=turn.loss)


def _spoken(turn: Turn) -> Turn:
    if not turn.speech:  # an earlier answer that nobody spoke
        return turn
    return Turn("assistant", speech=turn.speech, loss=turn.loss, words=turn.text)


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
    """Rows of one split with their codes, as turns: questions and answers.

    A row is read and its codes looked up when it is asked for; none is kept. A row's last answer is
    learnt, an earlier one unless it says ``loss: false``; its system message and ``weight`` are not
    read.
    """

    def __init__(self, corpus: Corpus, store: TokenStore, split: str) -> None:
        self._rows = corpus.lazy_rows(split)
        self._store = store
        self._split = split

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> Material:
        row = self._rows[place]
        turns = [message for message in row["messages"] if message["role"] != "system"]
        humans = [message["role"] in HUMAN for message in turns]
        if not turns or humans != [True, False] * (len(turns) // 2):
            raise UsageError(
                f"row {row['id']} of {self._split}.jsonl has turns of "
                f"{', '.join(message['role'] for message in turns) or 'nobody'}: a question and "
                f"its answer must take turns"
            )
        keys = {id(part): f"{self._split}/{key}" for key, part in question_keys(row)}
        listed = [
            (self._question(asked, keys), self._answer(answered))
            for asked, answered in zip(turns[::2], turns[1::2], strict=True)
        ]
        if any("ref" not in part for part in _sounds(turns[1:-1:2])):
            raise UsageError(
                f"row {row['id']} of {self._split}.jsonl: the sound of an earlier answer names no "
                f"answer of answers.jsonl by its ref"
            )
        question, answer = listed.pop()
        answer_text(row)  # or there is nothing to write
        if not question.speech:
            raise UsageError(f"the last question of row {row['id']} of {self._split}.jsonl is mute")
        if not answer.speech:
            answer = replace(answer, speech=[self._store[f"answers/{row['meta']['answer_id']}"]])
        return Material(row, question, replace(answer, loss=True), listed)

    def _question(self, message: dict[str, Any], keys: dict[int, str]) -> Turn:
        heard = [part for part in message["content"] if part["type"] == "audio"]
        if not heard:
            return Turn("human", _text(message))
        words = " ".join(part["text"] for part in heard if part.get("text"))
        return Turn("human", speech=[self._store[keys[id(part)]] for part in heard], words=words)

    def _answer(self, message: dict[str, Any]) -> Turn:
        speech: list[CodePair] = []
        pieces: list[str] = []
        words: list[str] = []
        for part in message["content"]:
            if part["type"] == "text":
                words.append(part["text"])
            elif "ref" in part:
                speech.append(self._store[f"answers/{part['ref']}"])
                pieces.append(" ".join(words))
                words = []
        text, loss = _text(message), bool(message.get("loss", True))
        several = len(speech) > 1 and not words and all(pieces)
        return Turn("assistant", text, speech, loss, pieces=pieces if several else [])

    def __iter__(self) -> Iterator[Material]:
        return (self[place] for place in range(len(self)))


def _sounds(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for m in messages for part in m["content"] if part["type"] == "audio"]


def _text(message: dict[str, Any]) -> str:
    return " ".join(part["text"] for part in message["content"] if part["type"] == "text")
