"""Both books of a clip, alone and in a batch."""

from pathlib import Path

import pytest
import torch

from aqaa.errors import UsageError
from aqaa.signals import GROUP_FRAMES, GROUP_SAMPLES
from aqaa.tokenizer.dual import DualTokenizer
from tests.golden.make import dual, speech_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> DualTokenizer:
    return dual()


def sound(groups: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(groups * GROUP_SAMPLES, generator=generator)
    tone = torch.sin(torch.arange(len(rough)) * 0.02 * (seed + 1))
    return 0.3 * tone + 0.1 * rough


def test_a_group_is_two_and_three_codes(tokenizer: DualTokenizer) -> None:
    codes = tokenizer.encode(sound(5, 0))
    assert (len(codes.linguistic), len(codes.semantic), codes.groups) == (10, 15, 5)
    assert all(0 <= c < 1024 for c in codes.linguistic)
    assert all(0 <= c < 4096 for c in codes.semantic)
    assert len(set(codes.semantic)) > 3


def test_clips_alone_and_padded_together(tokenizer: DualTokenizer) -> None:
    mels = [
        3 * torch.randn(80, n * GROUP_FRAMES, generator=torch.Generator().manual_seed(n)) - 3
        for n in (1, 6, 3)
    ]
    together = tokenizer.encode_mels(mels)
    assert together == [tokenizer.encode_mels([mel])[0] for mel in mels]
    assert [pair.groups for pair in together] == [1, 6, 3]


def test_one_book_may_be_asked_for(tokenizer: DualTokenizer) -> None:
    mels = [torch.randn(80, GROUP_FRAMES)]
    both, one = tokenizer.encode_mels(mels)[0], tokenizer.encode_mels(mels, books=("semantic",))[0]
    assert one.linguistic == []
    assert one.semantic == both.semantic


def test_saved_and_loaded_it_gives_the_same_codes(
    tokenizer: DualTokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    assert DualTokenizer.load(tmp_path).encode(sound(3, 2)) == tokenizer.encode(sound(3, 2))


def test_exchanged_books_are_refused(tokenizer: DualTokenizer, tmp_path: Path) -> None:
    semantic = speech_tokenizer("semantic", codes=32)
    with pytest.raises(UsageError, match="the linguistic tokenizer was given a semantic one"):
        DualTokenizer(semantic, semantic)
    tokenizer.save(tmp_path)
    (tmp_path / "linguistic").rename(tmp_path / "third")
    (tmp_path / "semantic").rename(tmp_path / "linguistic")
    (tmp_path / "third").rename(tmp_path / "semantic")
    with pytest.raises(UsageError, match="linguistic tokenizer was given a semantic"):
        DualTokenizer.load(tmp_path)
