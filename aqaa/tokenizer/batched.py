"""Codes of many clips at once, the same as of each clip alone.

Sound becomes pieces first (a mel, filter banks), which needs no network and may happen in another
process; a padded batch of pieces then becomes codes. In company a network rounds otherwise than
alone, so a vector on the border of two codes could fall to either: a piece with such a vector is
encoded once more alone. Codes thus never depend on what shared their batch.
Letters: T samples, F frames of a piece, I numbers a frame, N codes, W width, K codes of the book.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aqaa.audio.fbank import linguistic_frontend
from aqaa.audio.mel import log_mel, pad_mels
from aqaa.audio.whisper_mel import whisper_mel
from aqaa.errors import UsageError
from aqaa.signals import GROUP_SAMPLES
from aqaa.tokenizer import released
from aqaa.tokenizer.codebook import Codebook
from aqaa.tokenizer.dual import Book, check_samples
from aqaa.tokenizer.released import LinguisticTokenizer, SemanticTokenizer
from aqaa.tokenizer.sanm import CHUNK_FRAMES
from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer

# Rounding moves a vector by less than this share of its length (measured: 1e-6 over 50 blocks).
ROUNDING = 1e-5
_SEARCH_ROWS = 512


class Encoded(NamedTuple):
    """``codes`` of a piece, and whether none of them lies on a border (``sure``)."""

    codes: list[int]
    sure: bool


def pieces_of(book: Book, samples: Tensor) -> list[Tensor]:
    """What a book hears of one mono clip (T,) at 16 kHz: pieces (F, I), each coded on its own.

    A small tokenizer's mel is in half precision, as training keeps it.

    Raises:
        UsageError: NaN or Inf, a length the tokenizer cannot hear, an unknown kind of tokenizer.
    """
    check_samples(samples)
    if isinstance(book, LinguisticTokenizer):
        return [linguistic_frontend(samples)]
    if isinstance(book, SemanticTokenizer):
        bins = book.network.encoder.conv1.in_channels
        parts = samples.split(released.PIECE_SAMPLES) if len(samples) else ()
        long_enough = (p for p in parts if len(p) >= released.SHORTEST_PIECE_SAMPLES)
        return [whisper_mel(part, bins=bins).T for part in long_enough]
    if isinstance(book, SpeechTokenizer):
        if not len(samples) or len(samples) % GROUP_SAMPLES:
            raise UsageError(
                f"{len(samples)} samples are not whole groups of {GROUP_SAMPLES}: pad them first"
            )
        return [log_mel(samples[None])[0].half().T]
    raise UsageError(f"a {type(book).__name__} cannot encode by the batch")


def encode_pieces(book: Book, pieces: Sequence[Tensor]) -> list[list[int]]:
    """Codes of pieces (F, I) in one padded batch; each has those it would have alone."""
    filled = [i for i, piece in enumerate(pieces) if len(piece)]
    found: list[list[int]] = [[] for _ in pieces]
    together = _encode_padded(book, [pieces[i] for i in filled]) if filled else []
    for i, encoded in zip(filled, together, strict=True):
        found[i] = encoded.codes if encoded.sure else encode_alone(book, pieces[i])
    return found


@torch.no_grad()
def encode_alone(book: Book, piece: Tensor) -> list[int]:
    """Codes of one piece (F, I), as its tokenizer gives them to a clip that comes alone."""
    piece = piece.float().to(book.codebook.vectors.device)
    if isinstance(book, LinguisticTokenizer):
        if not len(piece):
            return []
        whole, rest = divmod(len(piece), CHUNK_FRAMES)
        chunks = [CHUNK_FRAMES] * whole + [rest] * bool(rest)
        vectors = book.encoder.encode_chunks(book.normalise(piece)[None], chunks)
        codes = book.codebook.search(vectors)[0]
    elif isinstance(book, SemanticTokenizer):
        lengths = torch.tensor([len(piece)], device=piece.device)
        codes = book.network(piece.T[None], lengths).codes[0]
    else:
        assert isinstance(book, SpeechTokenizer)
        codes = book.encode(piece.T[None], torch.ones(1, len(piece), device=piece.device))[0]
    listed: list[int] = codes.tolist()
    return listed


@torch.no_grad()
def _encode_padded(book: Book, pieces: Sequence[Tensor]) -> list[Encoded]:
    device = book.codebook.vectors.device
    pieces = [piece.float().to(device) for piece in pieces]
    lengths = torch.tensor([len(piece) for piece in pieces], device=device)
    if isinstance(book, LinguisticTokenizer):
        feats = [book.normalise(piece) for piece in pieces]
        vectors = book.encoder(nn.utils.rnn.pad_sequence(feats, batch_first=True), lengths)
    elif isinstance(book, SemanticTokenizer):
        mel = nn.utils.rnn.pad_sequence(list(pieces), batch_first=True).transpose(1, 2)
        hidden, lengths = book.network.encoder(mel, lengths)
        vectors = nn.functional.normalize(hidden, dim=-1)
    else:
        assert isinstance(book, SpeechTokenizer)
        mel, mask = pad_mels([piece.T.cpu() for piece in pieces])
        mel, mask = mel.to(device), mask.to(device)
        vectors, _ = book.encoder(book.normalise(mel, mask), mask)
        lengths = lengths // book.frames_per_code
    codes, sure = search_surely(book.codebook, vectors)
    return [
        Encoded(row[:length].tolist(), bool(certain[:length].all()))
        for row, certain, length in zip(codes, sure, lengths.tolist(), strict=True)
    ]


def search_surely(codebook: Codebook, z: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest codes of (..., W), and whether each vector lies clear of the runner-up's border.

    Clear is farther than :data:`ROUNDING` of its length; both results are (...).
    """
    if not codebook.active:
        raise UsageError("the codebook was never started from data")
    centres = codebook.vectors
    half_norm = 0.5 * centres.pow(2).sum(-1)
    farthest = (2 * half_norm.max()).sqrt()
    codes, sure = [], []
    for part in z.reshape(-1, z.shape[-1]).split(_SEARCH_ROWS):
        scores = torch.mm(part, centres.T).sub_(half_norm)
        best, first = scores.max(-1)
        scores.scatter_(1, first[:, None], -torch.inf)
        clearance = best - scores.amax(-1)  # of the runner-up, times the distance of both codes
        moved = ROUNDING * part.norm(dim=-1)
        clear = clearance > moved * 2 * farthest
        if len(near := (~clear).nonzero()[:, 0]):  # few: only they need to know who it was
            other = scores[near].argmax(-1)
            between = (centres[first[near]] - centres[other]).norm(dim=-1)
            clear[near] = clearance[near] > moved[near] * between
        codes.append(first)
        sure.append(clear)
    shape = z.shape[:-1]
    return torch.cat(codes).reshape(shape), torch.cat(sure).reshape(shape)
