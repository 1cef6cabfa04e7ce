"""The layout of a turn: one declaration builds sequences, loss slots, the decoding grammar and the parser.

Frame (Step-1): ``<s>`` then per turn ``<|BOT|>role\\n content <|EOT|>``. An answer that is written
and spoken alternates blocks of text ids and audio ids, 10 : 15 in the paper (section 2.2); the
audio runs on when the text has ended. Markers count nothing in a block. Our choices where the
paper is silent: ``<text_end>`` closes the text of a spoken answer (it counts as a text id);
``<audio_end>`` is chosen against the linguistic codes it competes with, at the start of a group.

A *slot* says against which ids a position is decided, in the loss and in decoding alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol

from aqaa.signals import (
    GROUP_TOKENS,
    LINGUISTIC_PER_GROUP,
    SEMANTIC_PER_GROUP,
    CodePair,
    Dialogue,
    Turn,
)
from aqaa.vocabulary import Vocabulary

Mode = Literal["text", "speech", "both"]


class Slot(IntEnum):
    """What a position chooses from; NONE carries no loss, FORCED has one possibility."""

    NONE = 0
    TEXT = 1
    LINGUISTIC = 2
    SEMANTIC = 3
    AFTER = 4  # after <audio_end>: more text, another label's <audio_start>, or <|EOT|>
    FORCED = 5


class TextIds(Protocol):
    """The protocol of :mod:`aqaa.text`."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...


@dataclass(frozen=True)
class Stream:
    """A sequence: ``ids`` (n,) and ``slots`` (n,), the slot each id is a target in."""

    ids: list[int]
    slots: list[int]


@dataclass(frozen=True)
class Answer:
    """A parsed answer; ``complete`` is False where it broke off before ``<|EOT|>``."""

    text: str
    speech: list[CodePair]
    complete: bool


@dataclass(frozen=True)
class StreamLayout:
    """How text and audio share one stream.

    Args:
        text_block: text ids a block (None: all of them, the paper's ``text_cot``).
        audio_block: audio ids a block, whole groups of five (None: all of them).
        question_books: what a spoken question carries, ``both`` (paper) or ``linguistic``.
        labels: several voice labels in one answer (paper Table 2): ``kept`` markers, ``removed``
            markers, or ``pre_interleaved`` pieces.
    """

    text_block: int | None = 10
    audio_block: int | None = 15
    question_books: Literal["both", "linguistic"] = "both"
    labels: Literal["kept", "removed", "pre_interleaved"] = "kept"

    def __post_init__(self) -> None:
        if self.text_block is not None and self.text_block < 1:
            raise ValueError(f"text_block {self.text_block} must be at least 1")
        if self.audio_block is not None and (self.audio_block < 5 or self.audio_block % GROUP_TOKENS):
            raise ValueError(f"audio_block {self.audio_block} must be whole groups of {GROUP_TOKENS}")
        if self.question_books not in ("both", "linguistic"):
            raise ValueError(f"question_books {self.question_books!r} is neither both nor linguistic")
        if self.labels not in ("kept", "removed", "pre_interleaved"):
            raise ValueError(f"labels {self.labels!r} is not kept, removed or pre_interleaved")

    # ---- building

    def encode(self, dialogue: Dialogue, text: TextIds, vocabulary: Vocabulary) -> Stream:
        """Ids and slots of whole turns, ``<s>`` first."""
        ids, slots = [vocabulary.bos], [int(Slot.NONE)]
        for turn in dialogue:
            head = self._header(turn.role, text, vocabulary)
            body = self._body(turn, text, vocabulary)
            ids += head + body
            slots += [int(Slot.NONE)] * len(head)
            slots += self._slots(body, turn, vocabulary) if turn.loss else [int(Slot.NONE)] * len(body)
        return Stream(ids, slots)

    def prompt(self, dialogue: Dialogue, text: TextIds, vocabulary: Vocabulary) -> list[int]:
        """Ids up to the point where the assistant begins to answer."""
        return self.encode(dialogue, text, vocabulary).ids + self._header("assistant", text, vocabulary)

    @staticmethod
    def _header(role: str, text: TextIds, vocabulary: Vocabulary) -> list[int]:
        return [vocabulary.bot, *text.encode(f"{role}\n")]

    def _body(self, turn: Turn, text: TextIds, vocabulary: Vocabulary) -> list[int]:
        words = text.encode(turn.text)
        if turn.role != "assistant":
            if not turn.speech:
                return [*words, vocabulary.eot]
            codes = [t for pair in turn.speech for t in self._question(pair, vocabulary)]
            return [vocabulary.audio_start, *codes, vocabulary.audio_end, *words, vocabulary.eot]
        if not turn.speech:
            return [*words, vocabulary.eot]
        mode: Mode = "both" if turn.text else "speech"
        return [*self._answer(words, turn.speech, mode, vocabulary), vocabulary.eot]

    def _question(self, pair: CodePair, vocabulary: Vocabulary) -> list[int]:
        if self.question_books == "linguistic":
            return [vocabulary.linguistic(c) for c in pair.linguistic]
        return audio_ids(pair, vocabulary)

    def _answer(
        self, words: list[int], speech: list[CodePair], mode: Mode, vocabulary: Vocabulary
    ) -> list[int]:
        if mode == "speech":
            return [t for stretch in self._stretches(speech, vocabulary) for t in stretch]
        if self.labels == "pre_interleaved" and len(speech) > 1:
            share = -(-len(words) // len(speech))
            pieces = [words[i * share : (i + 1) * share] for i in range(len(speech))]
            return [
                t
                for piece, pair in zip(pieces, speech, strict=True)
                for t in self._interleave(piece, [pair], vocabulary)
            ]
        return self._interleave(words, speech, vocabulary)

    def _stretches(self, speech: list[CodePair], vocabulary: Vocabulary) -> list[list[int]]:
        """Groups as lists of ids; a marker stands before the group that follows it."""
        if self.labels == "removed":
            whole = [whole_groups(pair) for pair in speech]
            linguistic = [code for pair in whole for code in pair.linguistic]
            speech = [CodePair(linguistic, [code for pair in whole for code in pair.semantic])]
        stretches: list[list[int]] = []
        glued: list[int] = []
        for pair in speech:
            glued.append(vocabulary.audio_start)
            ids = audio_ids(pair, vocabulary)
            for i in range(0, len(ids), GROUP_TOKENS):
                stretches.append(glued + ids[i : i + GROUP_TOKENS])
                glued = []
            glued.append(vocabulary.audio_end)
        return [*stretches, glued]

    def _interleave(
        self, words: list[int], speech: list[CodePair], vocabulary: Vocabulary
    ) -> list[int]:
        words = [*words, vocabulary.text_end]
        groups = self._stretches(speech, vocabulary)
        per_text = self.text_block or len(words)
        out: list[int] = []
        while words or groups:
            out += words[:per_text]
            words = words[per_text:]
            room = self.audio_block if words and self.audio_block else len(groups) * GROUP_TOKENS
            while groups and room > 0:
                group = groups.pop(0)
                out += group
                room -= sum(token < vocabulary.marker_start for token in group)
        return out

    def _slots(self, body: list[int], turn: Turn, vocabulary: Vocabulary) -> list[int]:
        mode: Mode = "text" if not turn.speech else "both" if turn.text else "speech"
        if turn.role != "assistant" and turn.speech:
            raise ValueError("loss on a spoken question: make it an assistant turn (continuation)")
        grammar = AnswerGrammar(self, vocabulary, mode)
        slots = []
        for token in body:
            slots.append(int(grammar.slot))
            grammar.advance(token)
        return slots

    # ---- reading back

    def parse(self, ids: Iterable[int], text: TextIds, vocabulary: Vocabulary) -> Answer:
        """Split an answer's ids into its text and its stretches of speech.

        Incomplete groups are dropped from both books, as in tokenizing.
        """
        words: list[int] = []
        speech: list[CodePair] = []
        current: list[int] = []
        complete = False
        for token in ids:
            if token == vocabulary.eot:
                complete = True
                break
            kind = vocabulary.token_type(token)
            if kind == "text":
                words.append(token)
            elif kind in ("linguistic", "semantic"):
                current.append(token)
            elif token == vocabulary.audio_end:
                speech.append(code_pair(current, vocabulary))
                current = []
        if current:
            speech.append(code_pair(current, vocabulary))
        return Answer(text.decode(words), speech, complete)

    def slot_ids(self, slot: Slot, vocabulary: Vocabulary) -> list[int]:
        """The ids a slot is normalised over; none for NONE and FORCED."""
        text = [*range(vocabulary.text_tokens), vocabulary.text_end]
        return {
            Slot.TEXT: text,
            Slot.AFTER: [*text, vocabulary.audio_start],
            Slot.LINGUISTIC: [
                *range(vocabulary.linguistic_start, vocabulary.semantic_start),
                vocabulary.audio_end,
            ],
            Slot.SEMANTIC: [*range(vocabulary.semantic_start, vocabulary.marker_start)],
        }.get(slot, [])


class AnswerGrammar:
    """Which slot comes next in an assistant turn, and which of its ids are allowed now.

    Args:
        layout: the declaration.
        vocabulary: the id space.
        mode: a written answer, a spoken one, or both.
    """

    def __init__(self, layout: StreamLayout, vocabulary: Vocabulary, mode: Mode) -> None:
        self._layout = layout
        self._vocabulary = vocabulary
        self._mode = mode
        self._text_done = mode == "speech"
        self._speech_done = mode == "text"
        self._open = False  # between <audio_start> and <audio_end>
        self._in_text = mode != "speech"
        self._block_ids = 0
        self._phase = 0  # position in the group of five
        self.finished = False

    @property
    def slot(self) -> Slot:
        """Slot of the next id."""
        if self._mode == "text":
            return Slot.TEXT
        if self._in_text:
            return Slot.TEXT
        if self._open:
            return Slot.LINGUISTIC if self._phase < LINGUISTIC_PER_GROUP else Slot.SEMANTIC
        return Slot.AFTER if self._speech_done else Slot.FORCED

    @property
    def forced(self) -> int | None:
        """The only id a FORCED slot allows."""
        return self._vocabulary.audio_start if self.slot is Slot.FORCED else None

    def refused(self) -> list[int]:
        """Ids of the slot that may not come now."""
        v, slot = self._vocabulary, self.slot
        never = [v.pad, v.bos, v.bot]
        if slot is Slot.TEXT:
            return [*never, v.text_end if self._mode == "text" else v.eot]
        if slot is Slot.LINGUISTIC:
            return [] if self._phase == 0 else [v.audio_end]
        if slot is Slot.AFTER:
            if not self._text_done:
                return [*never, v.eot]
            if self._layout.labels == "pre_interleaved" and self._mode == "both":
                return [*never, v.audio_start]
            text = [i for i in range(v.text_tokens) if i != v.eot]
            one_label = self._layout.labels == "removed"
            return [*text, v.text_end, *([v.audio_start] if one_label else [])]
        return []

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next."""
        if self.finished:
            return False
        if self.slot is Slot.FORCED:
            return token == self.forced
        v, slot = self._vocabulary, self.slot
        if slot is Slot.LINGUISTIC:
            inside = v.linguistic_start <= token < v.semantic_start or token == v.audio_end
        elif slot is Slot.SEMANTIC:
            inside = v.semantic_start <= token < v.marker_start
        else:
            inside = 0 <= token < v.text_tokens or token == v.text_end
            inside = inside or (slot is Slot.AFTER and token == v.audio_start)
        return inside and token not in self.refused()

    def advance(self, token: int) -> None:
        """Take one id; ValueError if the layout does not allow it here."""
        if not self.allows(token):
            raise ValueError(f"id {token} is not allowed in slot {self.slot.name}")
        v = self._vocabulary
        if token == v.eot:
            self.finished = True
        elif token == v.audio_start:
            self._open, self._speech_done, self._in_text = True, False, False
        elif token == v.audio_end:
            self._open, self._speech_done = False, True
        elif token == v.text_end or token < v.text_tokens:
            self._advance_text(token)
        else:
            self._advance_audio()

    def _advance_text(self, token: int) -> None:
        if self._mode == "text":
            return
        if not self._in_text:  # AFTER: text goes on, or the next pre-interleaved piece begins
            self._in_text, self._block_ids = True, 0
            if self._text_done:
                self._text_done, self._speech_done = False, False
        self._block_ids += 1
        self._text_done = token == self._vocabulary.text_end
        full = self._layout.text_block is not None and self._block_ids >= self._layout.text_block
        if self._text_done or full:
            self._in_text, self._block_ids = False, 0

    def _advance_audio(self) -> None:
        self._phase = (self._phase + 1) % GROUP_TOKENS
        self._block_ids += 1
        block = self._layout.audio_block
        if block is not None and self._block_ids >= block and not self._text_done:
            self._in_text, self._block_ids = True, 0


def whole_groups(pair: CodePair) -> CodePair:
    """Drop the incomplete tail group from both books."""
    n = pair.groups
    return CodePair(
        list(pair.linguistic[: n * LINGUISTIC_PER_GROUP]), list(pair.semantic[: n * SEMANTIC_PER_GROUP])
    )


def audio_ids(pair: CodePair, vocabulary: Vocabulary) -> list[int]:
    """Interleave both books 2:3, linguistic first; the incomplete tail group is dropped."""
    out: list[int] = []
    for g in range(pair.groups):
        out += [vocabulary.linguistic(c) for c in pair.linguistic[2 * g : 2 * g + 2]]
        out += [vocabulary.semantic(c) for c in pair.semantic[3 * g : 3 * g + 3]]
    return out


def code_pair(ids: Iterable[int], vocabulary: Vocabulary) -> CodePair:
    """Both books of interleaved audio ids, incomplete tail group dropped."""
    linguistic, semantic = [], []
    for token in ids:
        book = linguistic if token < vocabulary.semantic_start else semantic
        book.append(vocabulary.code(token))
    return whole_groups(CodePair(linguistic, semantic))
