"""Yardsticks: what the organs around the backbone allow, with organs that are perfect or deaf."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aqaa.data.corpus import SPLITS, Corpus, question_part
from aqaa.evaluation.yardsticks import phones, resynthesis, tokenizer_ceiling, yardsticks
from aqaa.signals import CodePair, Waveform
from tests.conftest import Chain
from tests.golden.make import speech_tokenizer


@pytest.fixture(scope="module")
def corpus(chain: Chain) -> Corpus:
    return Corpus(chain / "corpus")


class Scribe:
    """A tokenizer whose phones are given beforehand, clip by clip, whatever the sound."""

    def __init__(self, corpus: Corpus, spoken: list[list[str]]) -> None:
        self.phones = list(corpus.domain["phones"])
        self._spoken = iter(spoken)

    def __call__(self, mel: Tensor, mask: Tensor) -> Any:
        """log_probs (B, S, P) whose best path is the phones, a blank after each."""
        given = [next(self._spoken) for _ in range(len(mel))]
        steps = torch.tensor([2 * len(line) for line in given], dtype=torch.float)
        # What lies behind a clip's own steps must not be read.
        scores = torch.randn(len(mel), int(steps.max()) + 3, len(self.phones) + 1)
        for row, line in zip(scores, given, strict=True):
            for place, phone in enumerate(line):
                row[2 * place, self.phones.index(phone) + 1] = 99
                row[2 * place + 1, 0] = 99
        return SimpleNamespace(log_probs=scores.log_softmax(-1), steps=steps)


def questions(corpus: Corpus) -> list[list[str]]:
    return [question_part(row)["phones"] for row in corpus.rows("test")]


def test_a_perfect_tokenizer_reaches_one(corpus: Corpus) -> None:
    spoken = questions(corpus)
    found = tokenizer_ceiling(corpus, Scribe(corpus, spoken), rows=480)  # type: ignore[arg-type]
    assert (found["value"], found["n"]) == (1.0, len(spoken))
    rows = [row for split in SPLITS for row in corpus.rows(split)]
    texts = {question_part(row)["text"] for row in rows}
    assert found["split"] == f"test, unseen voices, nearest of {len(texts)} questions"
    three = tokenizer_ceiling(corpus, Scribe(corpus, spoken), rows=3)  # type: ignore[arg-type]
    assert (three["value"], three["n"]) == (1.0, 3)


def test_a_few_wrong_phones_do_no_harm(corpus: Corpus) -> None:
    spoken = [line[:-1] for line in questions(corpus)]
    found = tokenizer_ceiling(corpus, Scribe(corpus, spoken), rows=480)  # type: ignore[arg-type]
    assert found["value"] >= 0.7


def test_a_deaf_tokenizer_is_near_chance(corpus: Corpus) -> None:
    random = np.random.default_rng(0)
    known = corpus.domain["phones"]
    spoken = [list(random.choice(known, 20)) for _ in questions(corpus)]
    found = tokenizer_ceiling(corpus, Scribe(corpus, spoken), rows=480)  # type: ignore[arg-type]
    assert found["value"] <= 0.3
    swapped = questions(corpus)[1:] + questions(corpus)[:1]
    found = tokenizer_ceiling(corpus, Scribe(corpus, swapped), rows=480)  # type: ignore[arg-type]
    assert found["value"] <= 0.3


def test_phones_are_read_from_the_quantised_codes(corpus: Corpus) -> None:
    tokenizer = speech_tokenizer("linguistic", codes=32)
    parts = [question_part(row) for row in corpus.rows("train")][:40]
    before = phones(corpus, tokenizer, parts)
    assert {phone for line in before for phone in line} == {"a", "b", "c"}
    assert len({tuple(line) for line in before}) > 30
    # A clip alone is read as among others; padding says nothing.
    assert phones(corpus, tokenizer, parts[3:4]) == before[3:4]
    with torch.no_grad():
        tokenizer.codebook.vectors.zero_()  # every code the same: nothing is left to hear
    lengths_s = {round(part["end"] - part["start"], 2) for part in parts}
    assert len({tuple(line) for line in phones(corpus, tokenizer, parts)}) <= len(lengths_s) < 25


class Voice:
    """Tokenizer and vocoder in one: its codes are a clip's place, what it speaks is the clip."""

    def __init__(self, broken: int = 0) -> None:
        self.heard: list[Tensor] = []
        self.broken = broken

    def encode(self, samples: Tensor) -> CodePair:
        self.heard.append(samples)
        return CodePair([len(self.heard) - 1], [])

    def speak(self, codes: CodePair) -> Waveform:
        samples = self.heard[codes.linguistic[0]].numpy()
        return Waveform(samples if codes.linguistic[0] >= self.broken else 0 * samples, 16_000)


def ear(corpus: Corpus) -> Any:
    """Knows every original clip by its sound."""
    known = {
        corpus.samples(row["audio"]).numpy().tobytes(): row["text"]
        for row in corpus.answers.values()
    }
    return lambda samples: known.get(samples.tobytes(), "")


def test_resynthesis_is_the_share_still_recognised(corpus: Corpus) -> None:
    n = len(corpus.answers)
    for broken in (0, 5):
        voice: Any = Voice(broken)
        found = resynthesis(corpus, voice, voice, ear(corpus))
        assert (found["value"], found["n"]) == (pytest.approx((n - broken) / n), n)


def test_all_three_by_their_names(corpus: Corpus) -> None:
    voice: Any = Voice(broken=1)
    voice.linguistic = Scribe(corpus, questions(corpus))
    found = yardsticks(corpus, voice, voice, ear(corpus), rows=4)
    n = len(corpus.answers)
    assert {name: (f["value"], f["n"]) for name, f in found.items()} == {
        "ground_truth_recognised": (1.0, n),
        "resynthesis_recognised": (pytest.approx((n - 1) / n), n),
        "tokenizer_ceiling": (1.0, 4),
    }
    # The clips are those the organs learned from, and the figure says so.
    said = found["resynthesis_recognised"]["split"]
    assert said == "answer clips, which tokenizers and vocoder were trained on"
