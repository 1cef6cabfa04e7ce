"""Codes of padded batches: those of each clip alone, for every kind of tokenizer."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.tokenizer import batched, released
from aqaa.tokenizer.batched import encode_alone, encode_pieces, pieces_of, search_surely
from aqaa.tokenizer.codebook import Codebook
from aqaa.tokenizer.dual import DualTokenizer
from tests.golden.make import dual, released_dual

LENGTHS = (1920 * 4, 1920 * 9, 1920, 1920 * 7, 1920 * 30)


@pytest.fixture(params=["small", "released"])
def tokenizer(request: pytest.FixtureRequest) -> Iterator[DualTokenizer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(released, "PIECE_SAMPLES", 20_000)
        yield dual() if request.param == "small" else released_dual()


def sounds() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [0.2 * torch.randn(n, generator=generator) for n in LENGTHS]


@pytest.mark.parametrize("book", ["linguistic", "semantic"])
def test_a_clip_has_the_codes_it_would_have_alone(tokenizer: DualTokenizer, book: str) -> None:
    one = getattr(tokenizer, book)
    clips = sounds()
    pieces = [pieces_of(one, clip) for clip in clips]
    found = iter(encode_pieces(one, [p for clip in pieces for p in clip]))
    for clip, heard in zip(clips, pieces, strict=True):
        together = [code for _ in heard for code in next(found)]
        assert together == [code for piece in heard for code in encode_alone(one, piece)]
        if isinstance(one, released.LinguisticTokenizer | released.SemanticTokenizer):
            assert together == one.encode_sound(clip)
        assert len(together) >= len(clip) // 1920 * (2 if book == "linguistic" else 3)


def test_a_small_tokenizer_hears_a_mel_in_half_precision() -> None:
    book = dual().semantic
    clip = sounds()[1]
    (piece,) = pieces_of(book, clip)
    assert piece.dtype == torch.float16 and piece.shape == (12 * 9, 80)
    same = sum(
        a == b for a, b in zip(encode_alone(book, piece), book.encode_sound(clip), strict=True)
    )
    assert same >= 0.9 * 27


def test_a_vector_on_a_border_is_encoded_again_alone(
    tokenizer: DualTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = tokenizer.linguistic
    pieces = [pieces_of(book, clip)[0] for clip in sounds()]
    expected = encode_pieces(book, pieces)
    asked: list[int] = []
    monkeypatch.setattr(
        batched, "encode_alone", lambda b, piece: asked.append(len(piece)) or [-1]
    )
    monkeypatch.setattr(batched, "ROUNDING", 10.0)  # everything lies on a border
    assert encode_pieces(book, pieces) == [[-1]] * len(pieces)
    assert asked == [len(piece) for piece in pieces]
    monkeypatch.setattr(batched, "ROUNDING", 0.0)
    assert encode_pieces(book, pieces) == expected


def test_what_is_sure_is_what_rounding_cannot_move() -> None:
    book = Codebook(codes=3, width=2)
    book.hold(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 50.0]]))
    z = torch.tensor([[1.0 - 1e-6, 0.0], [1.0 + 1e-4, 0.0], [0.2, 0.1], [1.0, 1e-3]])
    codes, sure = search_surely(book, z)
    assert codes.tolist()[:3] == [0, 1, 0]
    assert sure.tolist() == [False, True, True, False]
    codes, sure = search_surely(book, torch.randn(2, 600, 2))
    assert codes.shape == sure.shape == (2, 600)


def test_equal_codes_are_never_sure() -> None:
    book = Codebook(codes=2, width=2)
    book.hold(torch.ones(2, 2))
    assert not search_surely(book, torch.ones(1, 2))[1].any()


def test_what_gives_no_code_gives_none() -> None:
    tokenizer = released_dual()
    for book in (tokenizer.linguistic, tokenizer.semantic):
        short = [piece for n in (0, 300) for piece in pieces_of(book, torch.zeros(n))]
        long = pieces_of(book, sounds()[0])
        found = encode_pieces(book, [*short, *long])
        assert found[:-1] == [[]] * len(short) and found[-1] == encode_alone(book, long[0])
    assert encode_pieces(tokenizer.linguistic, []) == []


def test_errors_of_use() -> None:
    small = dual().linguistic
    with pytest.raises(UsageError, match="1921 samples are not whole groups of 1920: pad them"):
        pieces_of(small, torch.zeros(1921))
    with pytest.raises(UsageError, match="holds 1920 NaN or infinite samples"):
        pieces_of(small, torch.full((1920,), torch.nan))
    with pytest.raises(UsageError, match="was never started from data"):
        search_surely(Codebook(codes=2, width=2), torch.ones(1, 2))

    class Strange:
        book, peak = "linguistic", 0.5

    with pytest.raises(UsageError, match="a Strange cannot encode by the batch"):
        pieces_of(Strange(), torch.zeros(1920))  # type: ignore[arg-type]
