"""Both tokenizers side by side: sound in, a :class:`CodePair` out.

Letters: T samples, F mel frames.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from aqaa.audio.mel import pad_mels
from aqaa.errors import UsageError
from aqaa.signals import PER_GROUP, Books, CodePair
from aqaa.storage import read_json
from aqaa.tokenizer.codebook import Codebook
from aqaa.tokenizer.released import CodeStream, LinguisticTokenizer, SemanticTokenizer
from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer

Loader = type[SpeechTokenizer] | type[LinguisticTokenizer] | type[SemanticTokenizer]
_KINDS: dict[str, Loader] = {c.__name__: c for c in (LinguisticTokenizer, SemanticTokenizer)}


class Book(Protocol):
    """One tokenizer of any kind: ``peak`` is the level of sound it was trained at."""

    book: str
    peak: float

    @property
    def codebook(self) -> Codebook:
        """Its codes."""
        ...

    def encode_sound(self, samples: Tensor) -> list[int]:
        """Codes of one mono clip (T,) at 16 kHz."""
        ...

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write its folder."""
        ...

    def eval(self) -> Any:
        """Set it to evaluation."""
        ...

    def to(self, device: torch.device) -> Any:
        """Move it to a device."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        ...


class DualTokenizer:
    """The linguistic and the semantic tokenizer of one model."""

    def __init__(self, linguistic: Book, semantic: Book) -> None:
        for tokenizer, book in ((linguistic, "linguistic"), (semantic, "semantic")):
            if tokenizer.book != book:
                raise UsageError(f"the {book} tokenizer was given a {tokenizer.book} one")
        if linguistic.peak != semantic.peak:
            raise UsageError(
                f"the linguistic tokenizer hears sound of peak {linguistic.peak:g}, the semantic "
                f"one of {semantic.peak:g}: both must come from one making"
            )
        self.linguistic = linguistic.eval()
        self.semantic = semantic.eval()

    @property
    def peak(self) -> float:
        """The level of sound both were trained at."""
        level: float = self.linguistic.peak
        return level

    def to(self, device: torch.device) -> "DualTokenizer":
        """Move both to a device."""
        for book in (self.linguistic, self.semantic):
            book.to(device)
        return self

    @classmethod
    def load(cls, folder: str | Path) -> "DualTokenizer":
        """Read ``folder/linguistic`` and ``folder/semantic``, of whichever kind they are."""
        folder = Path(folder)
        return cls(load_book(folder / "linguistic"), load_book(folder / "semantic"))

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write both below ``folder``, the numbers as ``dtype`` where one is given."""
        self.linguistic.save(Path(folder) / "linguistic", dtype=dtype)
        self.semantic.save(Path(folder) / "semantic", dtype=dtype)

    def encode(self, samples: Tensor, *, books: Books = "both") -> CodePair:
        """Codes of one mono clip (T,) at 16 kHz, as :func:`aqaa.audio.file.prepare` leaves it.

        Those of a rest that fills no whole group may be among them; a book that is not asked for
        stays empty.

        Raises:
            UsageError: not one clip, NaN or Inf, or a length that these tokenizers cannot hear.
        """
        check_samples(samples)
        pair = zip((self.linguistic, self.semantic), PER_GROUP[books], strict=True)
        return CodePair(*(book.encode_sound(samples) if per else [] for book, per in pair))

    def stream(self, *, books: Books = "both") -> "DualStream":
        """Begin a clip whose sound comes bit by bit; a book that is not asked for is not heard."""
        begin = [getattr(book, "stream", None) for book in (self.linguistic, self.semantic)]
        if None in begin:
            raise UsageError("these tokenizers hear whole clips only: gather the sound first")
        asked = zip(begin, PER_GROUP[books], strict=True)
        return DualStream(*(b() if b and per else _Deaf() for b, per in asked), books=books)

    def encode_mels(
        self, mels: list[Tensor], *, books: tuple[str, ...] = ("linguistic", "semantic")
    ) -> list[CodePair]:
        """Codes of log-mels, each (80, F) of whole groups, as one padded batch.

        A book that is not asked for stays empty.
        """
        batch, mask = pad_mels(mels)
        found: dict[str, list[list[int]]] = {}
        for book in books:
            tokenizer = getattr(self, book)
            if not isinstance(tokenizer, SpeechTokenizer):
                raise UsageError(f"the {book} tokenizer hears sound, not this mel: use encode")
            codes = tokenizer.encode(batch, mask)
            counts = [mel.shape[1] // tokenizer.frames_per_code for mel in mels]
            found[book] = [row[:count].tolist() for row, count in zip(codes, counts, strict=True)]
        empty: list[list[int]] = [[] for _ in mels]
        pairs = zip(found.get("linguistic", empty), found.get("semantic", empty), strict=True)
        return [CodePair(*pair) for pair in pairs]


class _Deaf:
    """The stream of a book that is not asked for."""

    def push(self, samples: Tensor) -> list[int]:
        return []

    def finish(self) -> list[int]:
        return []


class DualStream:
    """A clip on its way through the books: whole groups come out as soon as all know them."""

    def __init__(
        self, linguistic: CodeStream, semantic: CodeStream, *, books: Books = "both"
    ) -> None:
        self._streams = (linguistic, semantic)
        self._books: Books = books
        self._owed = CodePair([], [])

    def push(self, samples: Tensor) -> CodePair:
        """Take the next samples (T,); the groups that are now certain in all books.

        Raises:
            UsageError: not one clip, NaN or Inf; the stream stands where it stood.
        """
        check_samples(samples)
        return self._groups(*(stream.push(samples) for stream in self._streams))

    def finish(self) -> CodePair:
        """The sound has ended: the last whole groups; a rest of either book is dropped."""
        return self._groups(*(stream.finish() for stream in self._streams))

    def _groups(self, linguistic: list[int], semantic: list[int]) -> CodePair:
        owed = CodePair(self._owed.linguistic + linguistic, self._owed.semantic + semantic)
        groups = owed.groups_of(self._books)
        two, three = (groups * per for per in PER_GROUP[self._books])
        self._owed = CodePair(owed.linguistic[two:], owed.semantic[three:])
        return CodePair(owed.linguistic[:two], owed.semantic[:three])


def check_samples(samples: Tensor) -> None:
    """Refuse sound (T,) that would be given codes which mean nothing."""
    if samples.dim() != 1 or not samples.is_floating_point():
        raise UsageError(
            f"one clip (T,) of floating-point samples is needed, not {samples.dtype} of shape "
            f"{tuple(samples.shape)}: average its channels first"
        )
    if not bool(samples.isfinite().all()):
        bad = int((~samples.isfinite()).sum())
        raise UsageError(f"the sound holds {bad} NaN or infinite samples; record it again")


def load_book(folder: str | Path) -> Book:
    """Read one tokenizer's folder by the kind its config.json names."""
    settings = read_json(Path(folder) / "config.json")
    organ = settings.get("organ") if isinstance(settings, dict) else None
    return _KINDS.get(str(organ), SpeechTokenizer).load(folder)
