"""Both tokenizers side by side: sound in, a :class:`CodePair` out.

Letters: T samples, F mel frames.
"""

from pathlib import Path

import torch
from torch import Tensor

from aqaa.audio.mel import log_mel, pad_mels
from aqaa.errors import UsageError
from aqaa.signals import CodePair
from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer


class DualTokenizer:
    """The linguistic and the semantic tokenizer of one model."""

    def __init__(self, linguistic: SpeechTokenizer, semantic: SpeechTokenizer) -> None:
        for tokenizer, book in ((linguistic, "linguistic"), (semantic, "semantic")):
            if tokenizer.book != book:
                raise UsageError(f"the {book} tokenizer was given a {tokenizer.book} one")
        self.linguistic = linguistic.eval()
        self.semantic = semantic.eval()

    @classmethod
    def load(cls, folder: str | Path) -> "DualTokenizer":
        """Read ``folder/linguistic`` and ``folder/semantic``."""
        folder = Path(folder)
        return cls(
            SpeechTokenizer.load(folder / "linguistic"), SpeechTokenizer.load(folder / "semantic")
        )

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write both below ``folder``, the numbers as ``dtype`` where one is given."""
        self.linguistic.save(Path(folder) / "linguistic", dtype=dtype)
        self.semantic.save(Path(folder) / "semantic", dtype=dtype)

    def encode(self, samples: Tensor) -> CodePair:
        """Codes of one mono clip (T,) at 16 kHz, T whole groups of 1,920 samples."""
        return self.encode_mels([log_mel(samples[None])[0]])[0]

    def encode_mels(
        self, mels: list[Tensor], *, books: tuple[str, ...] = ("linguistic", "semantic")
    ) -> list[CodePair]:
        """Codes of log-mels, each (80, F) of whole groups, as one padded batch.

        A book that is not asked for stays empty.
        """
        batch, mask = pad_mels(mels)
        found: dict[str, list[list[int]]] = {}
        for book in books:
            tokenizer: SpeechTokenizer = getattr(self, book)
            codes = tokenizer.encode(batch, mask)
            counts = [mel.shape[1] // tokenizer.frames_per_code for mel in mels]
            found[book] = [row[:count].tolist() for row, count in zip(codes, counts, strict=True)]
        empty: list[list[int]] = [[] for _ in mels]
        pairs = zip(found.get("linguistic", empty), found.get("semantic", empty), strict=True)
        return [CodePair(*pair) for pair in pairs]
