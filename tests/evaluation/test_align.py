"""Phones of known words, against where the synthesiser put them."""

from pathlib import Path

import numpy as np
import pytest

from aqaa.data.corpus import Corpus, question_part
from aqaa.data.manifest import clip
from aqaa.evaluation.align import Aligner
from tests.conftest import Chain

pytest.importorskip("pocketsphinx")


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    return Aligner()


@pytest.fixture(scope="module")
def spoken(chain: Chain) -> tuple[np.ndarray, str]:
    corpus: Path = chain / "corpus"
    part = question_part(Corpus(corpus).rows("test")[0])
    return clip(part, corpus).samples, part["text"]


def order(frames: list[str | None]) -> list[str]:
    """Phones in the order they are said, each once however long it lasts."""
    kept = [a for a, b in zip(frames, [None, *frames], strict=False) if a and a != b]
    return kept


def test_the_words_phones_come_in_their_order(
    aligner: Aligner, spoken: tuple[np.ndarray, str]
) -> None:
    samples, text = spoken
    assert text.split()[0] in ("what", "which", "tell", "how")
    frames = aligner(samples, text)
    assert len(frames) == len(samples) // 160
    first = {"what": ["W", "AH", "T"], "which": ["W", "IH", "CH"], "tell": ["T", "EH", "L"],
             "how": ["HH", "AW"]}[text.split()[0]]  # fmt: skip
    assert order(frames)[: len(first)] == first


def test_silence_in_front_moves_every_phone(
    aligner: Aligner, spoken: tuple[np.ndarray, str]
) -> None:
    samples, text = spoken
    early = aligner(samples, text)
    late = aligner(np.pad(samples, (8000, 0)), text)
    assert order(late) == order(early)
    moved = [late.index(p) - early.index(p) for p in dict.fromkeys(order(early))]
    assert all(abs(frames - 50) <= 4 for frames in moved), moved


def test_what_cannot_be_found_gives_nothing(
    aligner: Aligner, spoken: tuple[np.ndarray, str]
) -> None:
    samples, text = spoken
    assert aligner(samples, "") == [] and aligner(samples, f"{text} xyzzyx") == []
    assert aligner(samples[:1600], "antidisestablishmentarianism " * 3) == []
    assert aligner(samples, text)  # and it hears again afterwards
