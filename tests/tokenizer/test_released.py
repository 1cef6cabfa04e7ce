"""Tokenizers of the released kind: a stream is a whole clip however it is cut, code for code."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aqaa.audio.fbank import stacked_frames
from aqaa.errors import UsageError
from aqaa.signals import Books, CodePair
from aqaa.stream import whole_groups
from aqaa.tokenizer import released
from aqaa.tokenizer.dual import DualStream, DualTokenizer
from aqaa.tokenizer.released import LinguisticTokenizer, PieceStream, SemanticTokenizer
from tests.golden.make import released_dual, speech_tokenizer

PIECE_SAMPLES = 7000  # pieces of 30 s would make every example slow


@pytest.fixture(scope="module")
def tokenizer() -> DualTokenizer:
    return released_dual()


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "PIECE_SAMPLES", PIECE_SAMPLES)


def sound(samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(samples)
    level = (places * 0.0007).sin() * 0.2
    return level * (places * 0.09).sin() + 0.05 * torch.randn(samples, generator=generator)


def cut(clip: Tensor, places: list[int]) -> list[Tensor]:
    edges = [0, *sorted(min(p, len(clip)) for p in places), len(clip)]
    return [clip[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def streamed(
    tokenizer: DualTokenizer, parts: list[Tensor], books: Books = "both"
) -> tuple[CodePair, CodePair]:
    """Codes that came before the sound ended, and all."""
    stream, found = tokenizer.stream(books=books), CodePair([], [])
    for part in parts:
        new = stream.push(part)
        found = CodePair(found.linguistic + new.linguistic, found.semantic + new.semantic)
    last = stream.finish()
    return found, CodePair(found.linguistic + last.linguistic, found.semantic + last.semantic)


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(0, 24_000),
    places=st.lists(st.integers(0, 24_000), max_size=12),
    seed=st.integers(0, 3),
)
def test_a_stream_is_the_whole_clip_however_it_is_cut(
    tokenizer: DualTokenizer, samples: int, places: list[int], seed: int
) -> None:
    clip = sound(samples, seed)
    whole = tokenizer.encode(clip)
    assert len(whole.linguistic) == stacked_frames(samples)
    found = streamed(tokenizer, cut(clip, places))[1]
    two, three = 2 * whole.groups, 3 * whole.groups
    assert found == CodePair(whole.linguistic[:two], whole.semantic[:three])


@settings(max_examples=10, deadline=None)
@given(
    samples=st.integers(0, 24_000),
    places=st.lists(st.integers(0, 24_000), max_size=6),
    books=st.sampled_from(["linguistic", "semantic"]),
)
def test_one_book_alone_streams_its_own_groups(
    tokenizer: DualTokenizer, samples: int, places: list[int], books: Books
) -> None:
    clip = sound(samples)
    both, alone = tokenizer.encode(clip), tokenizer.encode(clip, books=books)
    other = "semantic" if books == "linguistic" else "linguistic"
    assert getattr(alone, books) == getattr(both, books) and not getattr(alone, other)
    found = streamed(tokenizer, cut(clip, places), books)[1]
    assert found == whole_groups(both, books)


def test_books_of_a_clip_differ_from_code_to_code(tokenizer: DualTokenizer) -> None:
    whole = tokenizer.encode(sound(48_000))
    assert len(set(whole.linguistic)) > 5
    assert len(set(whole.semantic)) > 5


def test_codes_come_as_soon_as_they_are_certain(tokenizer: DualTokenizer) -> None:
    clip = sound(3840 * 3)
    stream = tokenizer.linguistic.stream()
    assert [len(stream.push(part)) for part in clip.split(1920)] == [0, 4, 0, 4, 0, 4]
    assert stream.finish() == []
    early, whole = streamed(tokenizer, list(sound(PIECE_SAMPLES * 2 + 900).split(1000)))
    assert 0 < len(early.semantic) < len(whole.semantic)


def test_pieces_and_the_rest_that_is_too_short() -> None:
    heard: list[int] = []
    stream = PieceStream(lambda piece: [heard.append(len(piece)) or 1])  # type: ignore[func-returns-value]
    assert stream.push(sound(PIECE_SAMPLES - 1)) == []
    assert stream.push(sound(PIECE_SAMPLES + 480)) == [1, 1]
    assert stream.finish() == []  # 479 samples
    assert heard == [PIECE_SAMPLES, PIECE_SAMPLES]
    stream.push(sound(1))
    assert stream.finish() == [1]
    assert heard[-1] == 480


def test_groups_wait_for_both_books() -> None:
    class Script:
        def __init__(self, *parts: list[int]) -> None:
            self.parts = list(parts)

        def push(self, samples: Tensor) -> list[int]:
            return self.parts.pop(0)

        def finish(self) -> list[int]:
            return self.parts.pop(0)

    stream = DualStream(Script([1, 2, 3, 4], [5], [6, 7]), Script([], [11, 12, 13, 14], [15, 16]))
    assert stream.push(sound(1)) == CodePair([], [])
    assert stream.push(sound(1)) == CodePair([1, 2], [11, 12, 13])
    assert stream.finish() == CodePair([3, 4], [14, 15, 16])


@torch.no_grad()
def test_clips_in_a_batch_give_a_streams_vectors(tokenizer: DualTokenizer) -> None:
    book = tokenizer.linguistic
    assert isinstance(book, LinguisticTokenizer)
    clips = [sound(n, n) for n in (9000, 300, 15_000, 3840)]
    found = book.vectors(clips)
    assert [len(v) for v in found] == [stacked_frames(len(c)) for c in clips]
    for vectors, clip in zip(found, clips, strict=True):
        codes: list[int] = book.codebook.search(vectors).tolist()
        assert codes == book.encode_sound(clip)
    assert [len(v) for v in book.vectors([sound(10)])] == [0]


def test_saved_and_loaded_it_gives_the_same_codes(
    tokenizer: DualTokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    loaded = DualTokenizer.load(tmp_path)
    assert isinstance(loaded.linguistic, LinguisticTokenizer)
    assert isinstance(loaded.semantic, SemanticTokenizer)
    assert loaded.peak == 0.999
    assert loaded.encode(sound(20_000)) == tokenizer.encode(sound(20_000))


def test_books_of_two_makings_are_refused(tokenizer: DualTokenizer) -> None:
    with pytest.raises(UsageError, match="peak 0.5, the semantic one of 0.999"):
        DualTokenizer(speech_tokenizer("linguistic", codes=32), tokenizer.semantic)


def test_what_each_kind_cannot_do_is_a_sentence(tokenizer: DualTokenizer) -> None:
    with pytest.raises(UsageError, match="linguistic tokenizer hears sound, not this mel"):
        tokenizer.encode_mels([torch.zeros(80, 12)])
    small = DualTokenizer(
        speech_tokenizer("linguistic", codes=32), speech_tokenizer("semantic", codes=32)
    )
    with pytest.raises(UsageError, match="hear whole clips only"):
        small.stream()
