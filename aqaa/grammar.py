"""The grammar of an answer: what may come next, id by id, in the loss and in decoding alike.

A *slot* says against which ids a position is decided.
"""

from enum import IntEnum
from typing import Literal, Protocol

from aqaa.signals import PER_GROUP, Books
from aqaa.vocabulary import Vocabulary

Mode = Literal["text", "speech", "both"]
Labels = Literal["kept", "removed", "pre_interleaved"]


class Slot(IntEnum):
    """What a position chooses from; NONE carries no loss, FORCED has one possibility."""

    NONE = 0
    TEXT = 1
    LINGUISTIC = 2
    SEMANTIC = 3
    AFTER = 4  # after <audio_end>: more text, another label's <audio_start>, or <|EOT|>
    FORCED = 5


class Blocks(Protocol):
    """What the grammar asks of :class:`aqaa.stream.StreamLayout`."""

    @property
    def text_block(self) -> int | None:
        """Text ids a block."""

    @property
    def audio_block(self) -> int | None:
        """Audio ids a block."""

    @property
    def labels(self) -> Labels:
        """How several voice labels share an answer."""

    @property
    def books(self) -> Books:
        """Which books speech is written in."""


def slot_ids(slot: Slot, vocabulary: Vocabulary, books: Books = "both") -> list[int]:
    """The ids a slot is normalised over; none for NONE and FORCED."""
    v = vocabulary
    # The end of the audio stands against the codes that begin a group.
    end = [v.audio_end] if books == "semantic" else []
    text = [*range(v.text_tokens), v.text_end]
    if v.eot >= v.text_tokens:  # a marker of our own
        text.append(v.eot)
    return {
        Slot.TEXT: text,
        Slot.AFTER: [*text, v.audio_start],
        Slot.LINGUISTIC: [*range(v.linguistic_start, v.semantic_start), v.audio_end],
        Slot.SEMANTIC: [*range(v.semantic_start, v.marker_start), *end],
    }.get(slot, [])


class AnswerGrammar:
    """Which slot comes next in an assistant turn, and which of its ids are allowed now.

    Args:
        layout: the declaration.
        vocabulary: the id space.
        mode: a written answer, a spoken one, or both.
    """

    def __init__(self, layout: Blocks, vocabulary: Vocabulary, mode: Mode) -> None:
        self._layout = layout
        self._vocabulary = vocabulary
        self._mode = mode
        self._text_done = mode == "speech"
        self._speech_done = mode == "text"
        self._open = False  # between <audio_start> and <audio_end>
        self._in_text = mode != "speech"
        self._block_ids = 0
        self._phase = 0  # position in the group
        self._per_group = PER_GROUP[layout.books]
        self.finished = False

    @property
    def books(self) -> Books:
        """Which books speech is written in."""
        return self._layout.books

    @property
    def slot(self) -> Slot:
        """Slot of the next id."""
        if self._mode == "text" or self._in_text:
            return Slot.TEXT
        if self._open:
            return Slot.LINGUISTIC if self._phase < self._per_group[0] else Slot.SEMANTIC
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
        if slot in (Slot.LINGUISTIC, Slot.SEMANTIC):
            return [] if self._phase == 0 or slot is not self._ends_in else [v.audio_end]
        return self._refused_after(never) if slot is Slot.AFTER else []

    @property
    def _ends_in(self) -> Slot:
        """The slot that holds the end of the audio besides its codes."""
        return Slot.LINGUISTIC if self._per_group[0] else Slot.SEMANTIC

    def _refused_after(self, never: list[int]) -> list[int]:
        v, labels = self._vocabulary, self._layout.labels
        pieces = labels == "pre_interleaved" and self._mode == "both"
        one_stretch = [v.audio_start] if pieces or labels == "removed" else []
        if not self._text_done:
            return [*never, v.eot, *one_stretch]
        if pieces:
            return [*never, *one_stretch]
        text = [i for i in range(v.text_tokens) if i != v.eot]
        return [*text, v.text_end, *one_stretch]

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next."""
        if self.finished:
            return False
        if self.slot is Slot.FORCED:
            return token == self.forced
        v, slot = self._vocabulary, self.slot
        if slot in (Slot.LINGUISTIC, Slot.SEMANTIC):
            first, last = v.linguistic_start, v.semantic_start
            if slot is Slot.SEMANTIC:
                first, last = v.semantic_start, v.marker_start
            inside = first <= token < last or (slot is self._ends_in and token == v.audio_end)
        else:
            inside = 0 <= token < v.text_tokens or token in (v.text_end, v.eot)
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
        self._phase = (self._phase + 1) % sum(self._per_group)
        self._block_ids += 1
        block = self._layout.audio_block
        if block is not None and self._block_ids >= block and not self._text_done:
            self._in_text, self._block_ids = True, 0
