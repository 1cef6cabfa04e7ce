"""One id space: text, 1024 linguistic, 4096 semantic, markers; only this file adds an offset.

The base model's text ids keep their place (for Step-1 ``text_tokens`` is 65,536 and the table has
74,752 rows). Specials below follow Step-1: pad 0, bos 1, EOT 3, BOT 4; where a base has none that
fits, a marker of our own behind the others takes the place.
"""

from dataclasses import dataclass

from aqaa.signals import (
    LINGUISTIC_CODES,
    LINGUISTIC_PER_GROUP,
    SEMANTIC_CODES,
    SEMANTIC_PER_GROUP,
    CodePair,
)

SPECIALS = ("pad", "bos", "eot", "bot")
MARKERS = ("<audio_start>", "<audio_end>", "<text_end>")
_OWN_MARKERS_END = len(MARKERS) + len(SPECIALS)
TOKEN_TYPES = ("text", "linguistic", "semantic", "marker")


@dataclass(frozen=True)
class Vocabulary:
    """Where every kind of id lives.

    Args:
        text_tokens: ids 0..text_tokens-1 belong to the text tokenizer.
        row_multiple: the table's rows are rounded up to a multiple of this.
        table_rows: rows of an existing table that already has room (0: as many as needed).
    """

    text_tokens: int
    row_multiple: int = 64
    table_rows: int = 0
    pad: int = 0
    bos: int = 1
    eot: int = 3
    bot: int = 4

    def __post_init__(self) -> None:
        own = range(self.marker_start + len(MARKERS), self.marker_start + _OWN_MARKERS_END)
        if not all(0 <= i < self.text_tokens or i in own for i in self._specials):
            raise ValueError(f"special ids {self} lie outside the {self.text_tokens} text ids")
        if self.table_rows and self.table_rows < self.used_rows:
            raise ValueError(f"table_rows {self.table_rows} < the {self.used_rows} ids in use")

    @classmethod
    def behind(
        cls, table_rows: int, specials: dict[str, int | None], *, row_multiple: int = 64
    ) -> "Vocabulary":
        """Ids behind all rows of a base model's table.

        Args:
            table_rows: of the base; all of them stay text ids.
            specials: id of ``pad``, ``bos``, ``eot`` and ``bot`` among them, or None for a marker
                of our own.
            row_multiple: the grown table's rows are rounded up to a multiple of this.
        """
        free = cls(table_rows, pad=0, bos=0, eot=0, bot=0).used_rows
        found = {}
        for name in SPECIALS:
            known = specials[name]
            found[name] = free if known is None else known
            free += known is None
        return cls(table_rows, row_multiple, **found)

    @property
    def _specials(self) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name in SPECIALS)

    @property
    def linguistic_start(self) -> int:
        """Id of linguistic code 0."""
        return self.text_tokens

    @property
    def semantic_start(self) -> int:
        """Id of semantic code 0."""
        return self.text_tokens + LINGUISTIC_CODES

    @property
    def marker_start(self) -> int:
        """Id of the first marker."""
        return self.semantic_start + SEMANTIC_CODES

    @property
    def audio_start(self) -> int:
        """Marker before a stretch of audio."""
        return self.marker_start

    @property
    def audio_end(self) -> int:
        """Marker after a stretch of audio."""
        return self.marker_start + 1

    @property
    def text_end(self) -> int:
        """Marker after the last text id of an answer that is also spoken (our choice)."""
        return self.marker_start + 2

    @property
    def used_rows(self) -> int:
        """Ids that mean something."""
        return max(self.marker_start + len(MARKERS), *(i + 1 for i in self._specials))

    @property
    def rows(self) -> int:
        """Rows of the embedding table."""
        return self.table_rows or -(-self.used_rows // self.row_multiple) * self.row_multiple

    def linguistic(self, code: int) -> int:
        """Id of a linguistic code; ValueError outside 0..1023."""
        return self.linguistic_start + _checked(code, LINGUISTIC_CODES, "linguistic")

    def semantic(self, code: int) -> int:
        """Id of a semantic code; ValueError outside 0..4095."""
        return self.semantic_start + _checked(code, SEMANTIC_CODES, "semantic")

    def code(self, token: int) -> int:
        """The code behind an audio id, within its own book."""
        if self.linguistic_start <= token < self.semantic_start:
            return token - self.linguistic_start
        if self.semantic_start <= token < self.marker_start:
            return token - self.semantic_start
        last = self.marker_start - 1
        raise ValueError(f"id {token} is not an audio id ({self.linguistic_start}..{last})")

    def token_type(self, token: int) -> str:
        """One of ``TOKEN_TYPES``; ValueError for an id that means nothing."""
        if token < 0:
            raise ValueError(f"id {token} is negative")
        if token < self.linguistic_start:
            return "text"
        if token < self.semantic_start:
            return "linguistic"
        if token < self.marker_start:
            return "semantic"
        if token < self.used_rows:
            return "marker"
        raise ValueError(f"id {token} lies outside the {self.used_rows} ids in use")


def _checked(code: int, size: int, book: str) -> int:
    if not 0 <= code < size:
        raise ValueError(f"{book} code {code} lies outside 0..{size - 1}")
    return int(code)


def interleaved(codes: CodePair) -> list[int]:
    """Both books as one stream of ids from 0, two linguistic and three semantic ones a group."""
    ids: list[int] = []
    for g in range(codes.groups):
        a, b = LINGUISTIC_PER_GROUP * g, SEMANTIC_PER_GROUP * g
        ids += codes.linguistic[a : a + LINGUISTIC_PER_GROUP]
        ids += [LINGUISTIC_CODES + c for c in codes.semantic[b : b + SEMANTIC_PER_GROUP]]
    return ids
