"""Codes of many clips: buckets of like length, read and prepared by other processes.

Letters: F frames, I numbers a frame.
"""

import ctypes
import itertools
import math
import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from aqaa.data.keyed_clips import Clip, Source
from aqaa.data.parts import BOOKS
from aqaa.errors import UsageError
from aqaa.signals import CodePair
from aqaa.tokenizer.batched import encode_pieces, pieces_of
from aqaa.tokenizer.dual import DualTokenizer
from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer

PADDED_SHARE = 0.05  # of a batch, at most
_PARENT_DEATH_SIGNAL = 1  # of prctl
_PREFETCHED = 2  # batches a process prepares ahead
Pieces = dict[str, list[NDArray[Any]]]  # by book: what it hears of a clip, (F, I) each


class Bad(NamedTuple):
    """A clip that has no codes, its file as the manifest names it, and why in a sentence."""

    key: str
    file: str
    reason: str


class Batch(NamedTuple):
    """``codes`` by key, clips that cannot be heard, and what the codes stand for.

    ``seconds`` of sound, and frames: padded, in all.
    """

    codes: list[tuple[str, CodePair]]
    bad: list[Bad]
    seconds: float
    padded_frames: int
    frames: int


def buckets(lengths: Sequence[float], limit: float) -> list[list[int]]:
    """Places of like length together, the longest first, so that memory is claimed once.

    Args:
        lengths: of the items.
        limit: what a bucket holds at most, its padding included; a longer item has its own.

    Returns:
        Buckets in which the padding is at most :data:`PADDED_SHARE`.
    """
    found: list[list[int]] = []
    held = 0.0
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if found:
            whole = (len(found[-1]) + 1) * lengths[found[-1][0]]
            padding = whole - held - lengths[place]
            if whole <= limit and padding <= PADDED_SHARE * whole:
                found[-1].append(place)
                held += lengths[place]
                continue
        found.append([place])
        held = lengths[place]
    return found


class _Prepared(Dataset[Any]):
    """Batches as their books hear them; a sentence in place of a clip that cannot be heard."""

    def __init__(self, source: Source, batches: list[list[Clip]], dual: DualTokenizer) -> None:
        self._source, self._batches, self._dual = source, batches, dual

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> list[Pieces | str]:
        return [self._prepare(clip) for clip in self._batches[number]]

    def _prepare(self, clip: Clip) -> Pieces | str:
        try:
            samples = self._source.sound(clip, self._dual.peak)
            heard = {"linguistic": pieces_of(self._dual.linguistic, samples)}
            if not clip.bare:
                both = (self._dual.linguistic, self._dual.semantic)
                alike = all(isinstance(book, SpeechTokenizer) for book in both)
                heard["semantic"] = heard["linguistic"] if alike else pieces_of(both[1], samples)
            return {book: [p.numpy() for p in pieces] for book, pieces in heard.items()}
        except UsageError as error:
            return str(error)


def encode(
    source: Source, clips: Sequence[Clip], dual: DualTokenizer, *, batch_s: float, workers: int
) -> Iterator[Batch]:
    """Encode some clips of a source, batch by batch; what cannot be heard is told beside them.

    Args:
        source: where they are read.
        clips: which.
        dual: the tokenizers.
        batch_s: seconds of sound a batch holds at most, its padding included.
        workers: processes that read and prepare (0: this one does).

    Raises:
        UsageError: ``batch_s`` is none, or a reading process ended.
    """
    if not batch_s > 0:
        raise UsageError(f"batch_s={batch_s} must be above 0")
    places = buckets([clip.seconds for clip in clips], batch_s)
    batches = [[clips[i] for i in bucket] for bucket in places]
    loader = DataLoader(
        _Prepared(source, batches, dual),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_end_with_parent,
        prefetch_factor=_PREFETCHED if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    prepared = iter(loader)
    for batch in batches:
        try:
            found = next(prepared)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UsageError(
                "a reading process ended before its work was done; is there memory left? "
                "Run the command again, perhaps with fewer workers or a smaller batch_s"
            ) from None
        pairs = list(zip(batch, found, strict=True))
        bad = [Bad(c.key, c.part["path"], why) for c, why in pairs if isinstance(why, str)]
        good = [(clip, pieces) for clip, pieces in pairs if not isinstance(pieces, str)]
        yield _encode_batch([c for c, _ in good], [p for _, p in good], dual, bad)


def _end_with_parent(worker: int) -> None:
    """Let Linux end a reading process whose parent was killed: its full pipe would hold it."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _as_it_is(item: Any) -> Any:
    return item


def _encode_batch(
    batch: list[Clip], found: list[Pieces], dual: DualTokenizer, bad: list[Bad]
) -> Batch:
    codes: dict[str, list[list[int]]] = {}
    padded = whole = 0
    for book in BOOKS:
        pieces = [[torch.from_numpy(p) for p in clip.get(book, [])] for clip in found]
        flat = list(itertools.chain.from_iterable(pieces))
        encoded: list[list[int]] = [[] for _ in flat]
        # A clip's rest is shorter than its whole pieces, and silence may have been cut off.
        for bucket in buckets([len(piece) for piece in flat], math.inf):
            here = [flat[i] for i in bucket]
            for i, row in zip(bucket, encode_pieces(getattr(dual, book), here), strict=True):
                encoded[i] = row
            whole += len(here) * len(here[0])
            padded += len(here) * len(here[0]) - sum(len(piece) for piece in here)
        rows = iter(encoded)
        codes[book] = [[c for _ in clip for c in next(rows)] for clip in pieces]
    pairs = zip(batch, codes["linguistic"], codes["semantic"], strict=True)
    keyed = [(clip.key, CodePair(linguistic, semantic)) for clip, linguistic, semantic in pairs]
    return Batch(keyed, bad, sum(clip.seconds for clip in batch), padded, whole)
