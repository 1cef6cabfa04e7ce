"""What flows through the chain, and every rate with its constant.

Letters: T samples, F mel frames, G groups of 120 ms (two linguistic and three semantic codes).
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

QUESTION_RATE_HZ = 16_000
MEL_RATE_HZ = 100  # of the log-mel every organ of this size works on
MEL_BINS = 80
VOCODER_RATE_HZ = 22_050  # sound of the released vocoder
VOCODER_HOP_SAMPLES = 256  # between frames of its mel
LINGUISTIC_PER_GROUP = 2
SEMANTIC_PER_GROUP = 3
GROUP_TOKENS = LINGUISTIC_PER_GROUP + SEMANTIC_PER_GROUP
GROUP_S = Fraction(12, 100)
LINGUISTIC_RATE_HZ = LINGUISTIC_PER_GROUP / GROUP_S  # 50/3
SEMANTIC_RATE_HZ = SEMANTIC_PER_GROUP / GROUP_S  # 25
AUDIO_TOKEN_RATE_HZ = GROUP_TOKENS / GROUP_S  # 125/3
GROUP_SAMPLES = int(GROUP_S * QUESTION_RATE_HZ)
GROUP_FRAMES = int(GROUP_S * MEL_RATE_HZ)
LINGUISTIC_CODES = 1024
SEMANTIC_CODES = 4096

Role = Literal["system", "human", "assistant"]
# Which books speech is written in: the paper's two, or one alone, as in its ablation.
Books = Literal["both", "linguistic", "semantic"]
PER_GROUP: dict[Books, tuple[int, int]] = {
    "both": (LINGUISTIC_PER_GROUP, SEMANTIC_PER_GROUP),
    "linguistic": (LINGUISTIC_PER_GROUP, 0),
    "semantic": (0, SEMANTIC_PER_GROUP),
}


@dataclass(frozen=True)
class Waveform:
    """Mono sound: ``samples`` float32 (T,) in -1..1 at ``rate_hz``."""

    samples: Any
    rate_hz: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate_hz


@dataclass(frozen=True)
class CodePair:
    """Both codebooks of one stretch of sound: ``linguistic`` 2G codes, ``semantic`` 3G codes."""

    linguistic: list[int]
    semantic: list[int]

    @property
    def groups(self) -> int:
        """Whole 120 ms groups that both books cover."""
        return self.groups_of("both")

    def groups_of(self, books: Books) -> int:
        """Whole 120 ms groups that these books cover."""
        lengths = (len(self.linguistic), len(self.semantic))
        return min(n // per for n, per in zip(lengths, PER_GROUP[books], strict=True) if per)


@dataclass(frozen=True)
class Turn:
    """One turn: its text, its speech (one :class:`CodePair` per voice label), or both.

    ``words`` is what its speech says where ``text`` does not, for a history that is kept in text.
    ``pieces``, where an answer has several labels, are the texts of their stretches of speech; one
    space between them makes ``text``.
    """

    role: Role
    text: str = ""
    speech: list[CodePair] = field(default_factory=list)
    loss: bool = False
    words: str = ""
    pieces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        fits = len(self.pieces) == len(self.speech) and " ".join(self.pieces) == self.text
        if self.pieces and not fits:
            raise ValueError(
                f"{len(self.pieces)} pieces {self.pieces} of {len(self.speech)} stretches of "
                f"speech are not the text {self.text!r}"
            )


Dialogue = list[Turn]
