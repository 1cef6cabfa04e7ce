"""Codes of every clip of a corpus, stored once: flat int32 files to read, Arrow to look at.

Folder: ``tokenizer/{linguistic,semantic}`` (the tokenizers themselves), for each book a pair of
:mod:`aqaa.data.flat` (``linguistic.bin`` and ``.idx``, ``semantic.bin`` and ``.idx``),
``keys.json`` with the clips in their order, ``meta.json`` and ``arrow/``; and where clips could not
be heard ``bad.jsonl``, a line each: key, file, reason.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aqaa.data.corpus import Corpus
from aqaa.data.flat import Flat, write_flat
from aqaa.data.parts import Codes, read_bad
from aqaa.errors import UsageError
from aqaa.signals import LINGUISTIC_CODES, SEMANTIC_CODES, CodePair
from aqaa.storage import read_json, tree_hash, write_json

META, KEYS = "meta.json", "keys.json"
_SIZES = {"linguistic": LINGUISTIC_CODES, "semantic": SEMANTIC_CODES}
_BOOKS = tuple(_SIZES)


class TokenStore:
    """Reads a token store; keys are ``<split>/<row id>`` and ``answers/<answer id>``."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / META).is_file():
            raise UsageError(
                f"{folder} is not a token store: run `aqaa data tokenize out={folder}`"
            )
        self.meta = read_json(self.folder / META)
        self._place = {key: i for i, key in enumerate(read_json(self.folder / KEYS))}
        self._books = [Flat(self.folder, book) for book in _BOOKS]
        for name, book in zip(_BOOKS, self._books, strict=True):
            if len(book) != len(self._place):
                raise UsageError(
                    f"{self.folder / KEYS} names {len(self._place)} clips, {name}.idx has "
                    f"{len(book)}: the store is damaged, tokenize again"
                )

    @property
    def tokenizer_hash(self) -> str:
        """Names the tokenizers the codes came from."""
        return self.meta["tokenizer_hash"]

    @property
    def tokenizer(self) -> Path:
        """Folder of those tokenizers."""
        return self.folder / "tokenizer"

    def check_corpus(self, corpus: Corpus) -> None:
        """Refuse a corpus that these codes were not made from: its ids may name other clips."""
        if tree_hash(corpus.folder) != self.meta["corpus_hash"]:
            raise UsageError(
                f"{self.folder} holds codes of another corpus than {corpus.folder}, or of an "
                f"earlier one in its place: run `aqaa data tokenize {corpus.folder}` again"
            )

    def keys(self) -> list[str]:
        """Keys of all clips, in the order they are stored."""
        return list(self._place)

    def bad(self) -> dict[str, str]:
        """Why clips have no codes here, by key."""
        return {row["key"]: row["reason"] for row in read_bad(self.folder)}

    def __getitem__(self, key: str) -> CodePair:
        """Codes of one clip; a book that was not stored is empty."""
        if key not in self._place:
            if reason := self.bad().get(key):
                raise UsageError(f"{self.folder} has no codes of {key}, which says: {reason}")
            raise UsageError(f"{self.folder} holds no codes of {key}: tokenize that corpus again")
        i = self._place[key]
        linguistic, semantic = (book[i].tolist() for book in self._books)
        return CodePair(linguistic, semantic)


def write_store(
    folder: Path, codes: Mapping[str, CodePair | Codes], meta: dict[str, Any]
) -> None:
    """Write the codes by key and what is known of them into a folder that is made as a whole.

    Args:
        folder: gets everything but the tokenizers.
        codes: by key, in the order they are stored; both books of each.
        meta: ``tokenizer_hash``, ``corpus_hash`` and ``question_books``; how many ``clips`` there
            were and how many of them ``bad``.
    """
    from datasets import Dataset, disable_progress_bars

    pairs = [(p.linguistic, p.semantic) if isinstance(p, CodePair) else p for p in codes.values()]
    columns = {
        book: [np.asarray(pair[place], np.int32) for pair in pairs]
        for place, book in enumerate(_BOOKS)
    }
    for book, lists in columns.items():
        write_flat(folder, book, lists)
    write_json(folder / KEYS, list(codes))
    disable_progress_bars()
    Dataset.from_dict({"key": list(codes), **columns}).save_to_disk(str(folder / "arrow"))
    usage = {
        book: np.bincount(np.concatenate([[], *columns[book]]).astype(int), minlength=size).tolist()
        for book, size in _SIZES.items()
    }
    write_json(folder / META, {**meta, "usage": usage})
