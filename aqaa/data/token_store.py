"""Codes of every clip of a corpus, stored once: flat int32 files to read, Arrow to look at.

Folder: ``tokenizer/{linguistic,semantic}`` (the tokenizers themselves), for each book a pair of
:mod:`aqaa.data.flat` (``linguistic.bin`` and ``.idx``, ``semantic.bin`` and ``.idx``),
``keys.json`` with the clips in their order, ``meta.json`` and ``arrow/``.
"""

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

from aqaa import lineage
from aqaa.data.corpus import SPLITS, Corpus, question_part
from aqaa.data.flat import Flat, write_flat
from aqaa.errors import UsageError
from aqaa.signals import LINGUISTIC_CODES, SEMANTIC_CODES, CodePair
from aqaa.storage import atomic_folder, check_replaceable, read_json, tree_hash, write_json
from aqaa.tokenizer.dual import DualTokenizer
from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer

META, KEYS = "meta.json", "keys.json"
_SIZES = {"linguistic": LINGUISTIC_CODES, "semantic": SEMANTIC_CODES}
_BOOKS = tuple(_SIZES)
_BATCH = 32


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

    def __getitem__(self, key: str) -> CodePair:
        """Codes of one clip; a book that was not stored is empty."""
        if key not in self._place:
            raise UsageError(f"{self.folder} holds no codes of {key}: tokenize that corpus again")
        i = self._place[key]
        linguistic, semantic = (book[i].tolist() for book in self._books)
        return CodePair(linguistic, semantic)


def tokenize(
    *, corpus: str, linguistic: str, semantic: str, out: str, question_books: str = "both"
) -> None:
    """Encode every clip of a corpus.

    Args:
        corpus: folder of the corpus.
        linguistic: model folder of that tokenizer.
        semantic: model folder of the other one.
        out: folder of the store, written as a whole.
        question_books: ``both``, or ``linguistic`` where the layout's questions carry that alone.
    """
    check_replaceable(out)
    if question_books not in ("both", "linguistic"):
        raise UsageError(f"question_books={question_books} is neither both nor linguistic")
    for parent in (corpus, linguistic, semantic):
        lineage.parent(parent)
    source = Corpus(corpus)
    dual = DualTokenizer(SpeechTokenizer.load(linguistic), SpeechTokenizer.load(semantic))
    clips = [(f"answers/{key}", row["audio"]) for key, row in source.answers.items()]
    for split in SPLITS:
        clips += [(f"{split}/{row['id']}", question_part(row)) for row in source.rows(split)]
    # The longest first: growing batches would never fit where the last one was, and memory would
    # grow to several times what is held.
    order = sorted(range(len(clips)), key=lambda i: clips[i][1]["start"] - clips[i][1]["end"])
    pairs: dict[int, CodePair] = {}
    for begin in range(0, len(order), _BATCH):
        places = order[begin : begin + _BATCH]
        mels = source.mels([clips[i][1] for i in places])
        whole = question_books == "both" or any(clips[i][0].startswith("answers/") for i in places)
        found = dual.encode_mels(mels, books=_BOOKS if whole else ("linguistic",))
        for i, pair in zip(places, found, strict=True):
            bare = question_books == "linguistic" and not clips[i][0].startswith("answers/")
            pairs[i] = CodePair(pair.linguistic, []) if bare else pair
    with atomic_folder(out) as folder:
        dual.save(folder / "tokenizer")
        meta = {
            "tokenizer_hash": lineage.tokenizer_hash(folder / "tokenizer"),
            "corpus_hash": tree_hash(source.folder),
            "question_books": question_books,
        }
        write_store(folder, {key: pairs[i] for i, (key, _) in enumerate(clips)}, meta)


def write_store(folder: Path, codes: dict[str, CodePair], meta: dict[str, Any]) -> None:
    """Write the codes by key and what is known of them into a folder that is made as a whole.

    Args:
        folder: gets everything but the tokenizers.
        codes: by key, in the order they are stored.
        meta: ``tokenizer_hash``, ``corpus_hash`` and ``question_books``.
    """
    from datasets import Dataset, disable_progress_bars

    columns = {book: [getattr(pair, book) for pair in codes.values()] for book in _BOOKS}
    for book, lists in columns.items():
        write_flat(folder, book, lists)
    write_json(folder / KEYS, list(codes))
    disable_progress_bars()
    Dataset.from_dict({"key": list(codes), **columns}).save_to_disk(str(folder / "arrow"))
    usage = {book: _histogram(columns[book], size) for book, size in _SIZES.items()}
    write_json(folder / META, {**meta, "usage": usage})


def _histogram(lists: list[list[int]], size: int) -> list[int]:
    """How often each code of a book occurs."""
    seen = Counter(chain.from_iterable(lists))
    return [seen[code] for code in range(size)]
