"""Codes of every clip of a corpus, stored once: flat int32 files to read, Arrow to look at.

Folder: ``tokenizer/{linguistic,semantic}`` (the tokenizers themselves), ``linguistic.bin`` and
``semantic.bin`` (int32), ``index.npy`` (n + 1, 2) offsets, ``keys.json``, ``meta.json`` and
``arrow/``.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from aqaa import lineage
from aqaa.data.corpus import SPLITS, Corpus, question_part, seconds
from aqaa.errors import UsageError
from aqaa.signals import LINGUISTIC_CODES, SEMANTIC_CODES, CodePair
from aqaa.storage import atomic_folder, check_replaceable, read_json, tree_hash, write_json
from aqaa.tokenizer.dual import DualTokenizer
from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer

META = "meta.json"
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
        self._place = {key: i for i, key in enumerate(read_json(self.folder / "keys.json"))}
        self._index = np.load(self.folder / "index.npy", allow_pickle=False)
        self._books = [np.fromfile(self.folder / f"{b}.bin", np.int32) for b in _BOOKS]

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
        return CodePair(
            *(book[self._index[i, b] : self._index[i + 1, b]].tolist()
              for b, book in enumerate(self._books))
        )


_BOOKS = ("linguistic", "semantic")


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
    order = sorted(range(len(clips)), key=lambda i: -seconds(clips[i][1]))
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
        _write(folder, [key for key, _ in clips], [pairs[i] for i in range(len(clips))])
        meta = {
            "tokenizer_hash": lineage.tokenizer_hash(folder / "tokenizer"),
            "corpus_hash": tree_hash(source.folder),
            "question_books": question_books,
            "usage": {
                book: _histogram(pairs.values(), book, size)
                for book, size in zip(_BOOKS, (LINGUISTIC_CODES, SEMANTIC_CODES), strict=True)
            },
        }
        write_json(folder / META, meta)


def _histogram(pairs: object, book: str, size: int) -> list[int]:
    """How often each code of a book occurs."""
    seen = Counter(code for pair in pairs for code in getattr(pair, book))  # type: ignore[attr-defined]
    return [seen[code] for code in range(size)]


def _write(folder: Path, keys: list[str], pairs: list[CodePair]) -> None:
    """Write the flat files and the Arrow table."""
    index = np.zeros((len(pairs) + 1, 2), np.int64)
    for b, book in enumerate(_BOOKS):
        codes = [getattr(pair, book) for pair in pairs]
        index[1:, b] = np.cumsum([len(c) for c in codes])
        np.fromiter((c for row in codes for c in row), np.int32).tofile(folder / f"{book}.bin")
    np.save(folder / "index.npy", index)
    write_json(folder / "keys.json", keys)
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    table = {"key": keys, **{b: [getattr(pair, b) for pair in pairs] for b in _BOOKS}}
    Dataset.from_dict(table).save_to_disk(str(folder / "arrow"))
