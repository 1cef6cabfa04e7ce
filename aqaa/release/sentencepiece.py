"""Step-1's ``tokenizer.model`` as text ids of ours, without the package that made it.

Such a file lists pieces with scores. Text of a turn is encoded without the blank that SentencePiece
puts before everything, as Step-Audio does for speech; a role's header has it, as in its template.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from aqaa.errors import UsageError
from aqaa.release.onnx_weights import fields
from aqaa.text import HEADERS, TextTokenizer

FILE = "tokenizer.model"
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _KIND = 1, 2, 3
_MODEL_KIND, _UNIGRAM, _BPE = 3, 1, 2
_CHARSMAP, _ONE_BLANK = 2, 4
_NORMAL, _UNKNOWN, _CONTROL, _OWN, _BYTE = 1, 2, 3, 4, 6
_BLANK = "\u2581"
_AUDIO = re.compile(r"<audio_\d+>")


@dataclass
class _Model:
    """Pieces in the order of their ids: text, score, kind."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    kind: int = _UNIGRAM
    charsmap: bytes = b""
    one_blank: bool = True


def read_text_ids(path: str | Path) -> TextTokenizer:
    """The text ids of a ``tokenizer.model``; its ``<audio_…>`` entries are left to the vocabulary.

    Raises:
        UsageError: no such file, or not of that kind.
    """
    path = Path(path)
    try:
        model = _read(memoryview(path.read_bytes()))
    except (OSError, ValueError, IndexError, TypeError, struct.error) as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(f"{path} cannot be read as a SentencePiece model: {reason}") from None
    first_audio = next((i for i, p in enumerate(model.pieces) if _AUDIO.fullmatch(p[0])), None)
    model.pieces = model.pieces[:first_audio]
    if model.kind not in (_UNIGRAM, _BPE) or not any(p[2] == _UNKNOWN for p in model.pieces):
        raise UsageError(f"{path} is no SentencePiece model of pieces by unigram or BPE")
    return TextTokenizer(_tokenizer(model))


def _read(data: memoryview) -> _Model:
    model = _Model()
    for number, value in fields(data):
        if number == _PIECE:
            parts = dict(fields(value))
            score = struct.unpack("<f", bytes(parts[_SCORE]))[0] if _SCORE in parts else 0.0
            text = bytes(parts[_TEXT]).decode("utf-8")
            model.pieces.append((text, score, parts.get(_KIND, _NORMAL)))
        elif number == _TRAINER:
            model.kind = dict(fields(value)).get(_MODEL_KIND, _UNIGRAM)
        elif number == _NORMALIZER:
            parts = dict(fields(value))
            model.charsmap = bytes(parts.get(_CHARSMAP, b""))
            model.one_blank = bool(parts.get(_ONE_BLANK, True))
    return model


def _tokenizer(model: _Model) -> Tokenizer:
    ids = {text: i for i, (text, _, _) in enumerate(model.pieces)}
    unknown = next(text for text, _, kind in model.pieces if kind == _UNKNOWN)
    bytewise = any(kind == _BYTE for *_, kind in model.pieces)
    found: Any
    if model.kind == _UNIGRAM:
        scored = [(text, score) for text, score, _ in model.pieces]
        found = Tokenizer(models.Unigram(scored, ids[unknown], bytewise))
    else:
        merges = list(_merges(model, ids))
        found = Tokenizer(
            models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytewise)
        )
    found.normalizer = normalizers.Sequence(list(_normalizers(model)))
    blank = decoders.Replace(_BLANK, " ")
    found.decoder = decoders.Sequence([blank, decoders.ByteFallback(), decoders.Fuse()])
    found.add_special_tokens([
        AddedToken(text, special=True, normalized=False)
        for text, _, kind in model.pieces if kind in (_UNKNOWN, _CONTROL, _OWN) and text.strip()
    ])  # fmt: skip
    return found


def _normalizers(model: _Model) -> Iterator[Any]:
    if model.charsmap:
        yield normalizers.Precompiled(model.charsmap)
    if model.one_blank:
        yield normalizers.Replace(Regex(" {2,}"), " ")
    for header in HEADERS:
        yield normalizers.Replace(Regex(rf"\A{header.strip()}\n\z"), f" {header}")
    yield normalizers.Replace(" ", _BLANK)


def _merges(model: _Model, ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Pairs that make a piece, the best piece's first: what is merged first is scored highest."""
    scored = [(score, text) for text, score, kind in model.pieces if kind == _NORMAL]
    for _, text in sorted(scored, key=lambda item: (-item[0], ids[item[1]])):
        halves = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
        yield from sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
