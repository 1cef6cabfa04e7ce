"""Training of the two speech tokenizers."""

import pytest
import torch

from aqaa.errors import UsageError
from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer
from tests.conftest import STEPS, Chain

BOOKS = {"linguistic": (1024, 6), "semantic": (4096, 4)}


@pytest.mark.parametrize("book", BOOKS)
def test_the_codebook_starts_half_way(book: str, chain: Chain, metrics) -> None:
    rows = metrics(chain / f"tokenizer_{book}")
    started = [bool(row["train/commitment"]) for row in rows]
    assert started == [step >= STEPS // 2 for step in range(STEPS)]
    assert all(row["train/ctc"] for row in rows)
    assert ("train/mel" in rows[0]) == (book == "semantic")
    checked = [row for row in rows if row["validation/phone_error_rate"]]
    assert [int(row["step"]) for row in checked] == [1, 3, 5]


@pytest.mark.parametrize("book", BOOKS)
def test_the_export_encodes(book: str, chain: Chain) -> None:
    codes, frames = BOOKS[book]
    tokenizer = SpeechTokenizer.load(chain / f"tokenizer_{book}" / "model")
    assert (tokenizer.book, tokenizer.frames_per_code) == (book, frames)
    assert tokenizer.codebook.vectors.shape[0] == codes and bool(tokenizer.codebook.active)
    found = tokenizer.encode(torch.randn(2, 80, 24), torch.ones(2, 24))
    assert found.shape == (2, 24 // frames) and 0 <= found.min() <= found.max() < codes


def test_the_loss_is_the_weighted_sum_of_its_terms(chain: Chain, metrics) -> None:
    for row in metrics(chain / "tokenizer_semantic"):
        loss = 0.5 * float(row["train/ctc"]) + 2 * float(row["train/mel"])
        loss += 0.25 * float(row["train/commitment"] or 0)
        assert float(row["train/loss"]) == pytest.approx(loss, rel=1e-5)


def test_a_codebook_that_never_starts_is_refused(attach) -> None:
    from functools import partial
    from types import SimpleNamespace

    from aqaa.stages.optimizer import OptimizerSettings
    from aqaa.stages.tokenizer import Tokenizer

    lr = OptimizerSettings(lr=1.0)
    with pytest.raises(UsageError, match="the codebook must start within the run"):
        Tokenizer(network=SpeechTokenizer, optimizer=lr, codebook_at=1.1)
    small = partial(SpeechTokenizer, book="semantic", codes=8, frames_per_code=4, ctc_steps=2)
    stage = Tokenizer(network=small, optimizer=lr, codebook_at=1.0)
    with pytest.raises(UsageError, match="codebook_at=1: the codebook must start within the run"):
        attach(stage, SimpleNamespace(vocabulary={"phones": ["a"]}))
