"""The layout of a turn: one declaration builds sequences, loss slots, the grammar and the parser.

Frame (Step-1): ``<s>``, then per turn ``<|BOT|>role``, a line break, the content, ``<|EOT|>``. An
answer that is written and spoken alternates blocks of text ids and audio ids, 10 : 15 in the paper
(section 2.2); the audio runs on when the text has ended. Markers count nothing in a block. Our
choices where the paper is silent: ``<text_end>`` closes the text of a spoken answer (it counts as
a text id); ``<audio_end>`` is chosen against the linguistic codes it competes with, at the start
of a group.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

from aqaa.errors import UsageError
from aqaa.grammar import AnswerGrammar, Labels, Mode, Slot, slot_ids
from aqaa.signals import (
    PER_GROUP,
    Books,
    CodePair,
    Dialogue,
    Turn,
)
from aqaa.vocabulary import Vocabulary

History = Literal["text", "audio", "none"]


class TextIds(Protocol):
    """The protocol of :mod:`aqaa.text`."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids."""


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
        books: ``both`` (paper), or one alone, for the ablation; then a group of 120 ms is two
            linguistic or three semantic ids, in questions and answers.
    """

    text_block: int | None = 10
    audio_block: int | None = 15
    question_books: Literal["both", "linguistic"] = "both"
    labels: Labels = "kept"
    books: Books = "both"
    history: History = "text"

    def __post_init__(self) -> None:
        if self.books not in get_args(Books):
            raise UsageError(f"books {self.books!r} is not one of {', '.join(get_args(Books))}")
        text, audio = self.text_block, self.audio_block
        if text is not None and text < 1:
            raise UsageError(f"text_block {text} must be at least 1")
        if audio is not None and (audio < 1 or audio % self.group_tokens):
            raise UsageError(f"audio_block {audio} must be whole groups of {self.group_tokens}")
        if self.question_books not in ("both", "linguistic"):
            raise UsageError(
                f"question_books {self.question_books!r} is neither both nor linguistic"
            )
        if self.books == "semantic" and self.question_books != "both":
            raise UsageError(
                f"question_books {self.question_books!r} leaves nothing of the one semantic book"
            )
        for name, known in (("labels", get_args(Labels)), ("history", get_args(History))):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"{name} {value!r} is not one of {', '.join(known)}")

    @property
    def group_tokens(self) -> int:
        """Audio ids of 120 ms."""
        return sum(PER_GROUP[self.books])

    # ---- building

    def recalled(self, dialogue: Dialogue) -> Dialogue:
        """The dialogue as its last question is heard: what came before it as ``history`` says.

        Raises:
            UsageError: an earlier answer is to be learnt, which then has another history; or it is
                speech whose words are not known.
        """
        last = max((i for i, turn in enumerate(dialogue) if turn.role == "human"), default=0)
        before, now = dialogue[:last], dialogue[last:]
        if self.history == "audio" or all(turn.role == "system" for turn in before):
            return dialogue
        if any(turn.loss for turn in before):
            raise UsageError(
                f"an answer before the last question is to be learnt, but with layout.history="
                f"{self.history} every answer has a history of its own: give it a row of its own, "
                f"or init with layout.history=audio"
            )
        if self.history == "none":
            return [turn for turn in before if turn.role == "system"] + now
        return [_in_words(turn) for turn in before] + now

    def encode(self, dialogue: Dialogue, text: TextIds, vocabulary: Vocabulary) -> Stream:
        """Ids and slots of whole turns, ``<s>`` first, the earlier ones as ``history`` says."""
        ids, slots = [vocabulary.bos], [int(Slot.NONE)]
        for turn in self.recalled(dialogue):
            head = self._header(turn.role, text, vocabulary)
            body = self._body(turn, text, vocabulary)
            ids += head + body
            slots += [int(Slot.NONE)] * len(head)
            silent = [int(Slot.NONE)] * len(body)
            slots += self._slots(body, turn, vocabulary) if turn.loss else silent
        return Stream(ids, slots)

    def length(self, dialogue: Dialogue, text: TextIds) -> int:
        """How many ids :meth:`encode` makes, without making them."""
        return 1 + sum(self._turn_length(turn, text) for turn in self.recalled(dialogue))

    def _turn_length(self, turn: Turn, text: TextIds) -> int:
        frame = 2 + len(text.encode(f"{turn.role}\n"))  # <|BOT|> and <|EOT|>
        words = sum(map(len, self._words(turn, text)))
        if not turn.speech:
            return frame + words
        groups = sum(pair.groups_of(self.books) for pair in turn.speech)
        if turn.role != "assistant":
            linguistic = sum(len(pair.linguistic) for pair in turn.speech)
            bare = self.question_books == "linguistic"
            return frame + 2 + (linguistic if bare else groups * self.group_tokens) + words
        labels = 1 if self.labels == "removed" else len(turn.speech)
        pieces = len(turn.speech) if self.labels == "pre_interleaved" else 1
        ends = pieces if turn.text else 0  # a <text_end> for each piece of text
        return frame + 2 * labels + groups * self.group_tokens + words + ends

    def prompt(self, dialogue: Dialogue, text: TextIds, vocabulary: Vocabulary) -> list[int]:
        """Ids up to the point where the assistant begins to answer, as training has them."""
        before = self.encode(dialogue, text, vocabulary).ids
        return before + self._header("assistant", text, vocabulary)

    @staticmethod
    def _header(role: str, text: TextIds, vocabulary: Vocabulary) -> list[int]:
        return [vocabulary.bot, *text.encode(f"{role}\n")]

    def _words(self, turn: Turn, text: TextIds) -> list[list[int]]:
        """Ids of the text, in pieces where each is interleaved with its own speech."""
        if self.labels == "pre_interleaved" and turn.role == "assistant" and turn.pieces:
            return [text.encode(f" {piece}" if i else piece) for i, piece in enumerate(turn.pieces)]
        words = text.encode(turn.text)
        if self.labels != "pre_interleaved" or turn.role != "assistant" or not turn.speech:
            return [words]
        share = -(-len(words) // len(turn.speech))  # nobody says which words are whose
        return [words[i * share : (i + 1) * share] for i in range(len(turn.speech))]

    def _body(self, turn: Turn, text: TextIds, vocabulary: Vocabulary) -> list[int]:
        pieces = self._words(turn, text)
        words = pieces[0]
        if turn.role != "assistant":
            if not turn.speech:
                return [*words, vocabulary.eot]
            codes = [t for pair in turn.speech for t in self._question(pair, vocabulary)]
            return [vocabulary.audio_start, *codes, vocabulary.audio_end, *words, vocabulary.eot]
        if not turn.speech:
            return [*words, vocabulary.eot]
        mode: Mode = "both" if turn.text else "speech"
        return [*self._answer(pieces, turn.speech, mode, vocabulary), vocabulary.eot]

    def _question(self, pair: CodePair, vocabulary: Vocabulary) -> list[int]:
        if self.question_books == "linguistic":
            return [vocabulary.linguistic(c) for c in pair.linguistic]
        return audio_ids(pair, vocabulary, self.books)

    def _answer(
        self, pieces: list[list[int]], speech: list[CodePair], mode: Mode, vocabulary: Vocabulary
    ) -> list[int]:
        if mode == "speech":
            return [t for stretch in self._stretches(speech, vocabulary) for t in stretch]
        if len(pieces) == 1:
            return self._interleave(pieces[0], speech, vocabulary)
        joined = zip(pieces, speech, strict=True)
        return [t for piece, pair in joined for t in self._interleave(piece, [pair], vocabulary)]

    def _stretches(self, speech: list[CodePair], vocabulary: Vocabulary) -> list[list[int]]:
        """Groups as lists of ids; a marker stands before the group that follows it."""
        if self.labels == "removed":
            whole = [whole_groups(pair, self.books) for pair in speech]
            linguistic = [code for pair in whole for code in pair.linguistic]
            speech = [CodePair(linguistic, [code for pair in whole for code in pair.semantic])]
        stretches: list[list[int]] = []
        glued: list[int] = []
        for pair in speech:
            glued.append(vocabulary.audio_start)
            ids = audio_ids(pair, vocabulary, self.books)
            for i in range(0, len(ids), self.group_tokens):
                stretches.append(glued + ids[i : i + self.group_tokens])
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
            all_of_it = len(groups) * self.group_tokens
            room = self.audio_block if words and self.audio_block else all_of_it
            while groups and room > 0:
                group = groups.pop(0)
                out += group
                room -= sum(token < vocabulary.marker_start for token in group)
        return out

    def _slots(self, body: list[int], turn: Turn, vocabulary: Vocabulary) -> list[int]:
        mode: Mode = "text" if not turn.speech else "both" if turn.text else "speech"
        if turn.role != "assistant" and turn.speech:
            raise UsageError("loss on a spoken question: make it an assistant turn (continuation)")
        grammar = AnswerGrammar(self, vocabulary, mode)
        slots = []
        for token in body:
            slots.append(int(grammar.slot))
            if not grammar.allows(token):
                raise UsageError(
                    f"id {token} cannot be learnt as part of the answer {turn.text!r}: the text "
                    "vocabulary does not know a word of it, or the word is a control id"
                )
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
                speech.append(code_pair(current, vocabulary, self.books))
                current = []
        if current:
            speech.append(code_pair(current, vocabulary, self.books))
        return Answer(text.decode(words), speech, complete)

    def slot_ids(self, slot: Slot, vocabulary: Vocabulary) -> list[int]:
        """The ids a slot is normalised over; none for NONE and FORCED."""
        return slot_ids(slot, vocabulary, self.books)


def _in_words(turn: Turn) -> Turn:
    """A turn of the history without its sound."""
    if not turn.speech:
        return turn
    words = turn.text or turn.words
    if not words:
        raise UsageError(
            f"an earlier turn of the {turn.role} is speech without its words, but the history is "
            f"kept in text: write them down, or init with layout.history=audio or none"
        )
    return replace(turn, text=words, speech=[], words="", pieces=[])


def whole_groups(pair: CodePair, books: Books = "both") -> CodePair:
    """Drop the incomplete tail group from these books, and all of another."""
    groups = pair.groups_of(books)
    linguistic, semantic = (groups * per for per in PER_GROUP[books])
    return CodePair(list(pair.linguistic[:linguistic]), list(pair.semantic[:semantic]))


def audio_ids(pair: CodePair, vocabulary: Vocabulary, books: Books = "both") -> list[int]:
    """Interleave both books 2:3, linguistic first, or write one alone; whole groups only."""
    two, three = PER_GROUP[books]
    out: list[int] = []
    for g in range(pair.groups_of(books)):
        out += [vocabulary.linguistic(c) for c in pair.linguistic[two * g : two * (g + 1)]]
        out += [vocabulary.semantic(c) for c in pair.semantic[three * g : three * (g + 1)]]
    return out


def code_pair(ids: Iterable[int], vocabulary: Vocabulary, books: Books = "both") -> CodePair:
    """The books of audio ids, incomplete tail group dropped."""
    linguistic: list[int] = []
    semantic: list[int] = []
    for token in ids:
        book = linguistic if token < vocabulary.semantic_start else semantic
        book.append(vocabulary.code(token))
    return whole_groups(CodePair(linguistic, semantic), books)
