"""Every stage as `trainer=gpu` trains it: bf16 where it may be, gradients clipped."""

from pathlib import Path

import pytest
import torch

from tests.conftest import Chain
from tests.runs import train
from tests.stages.test_adversarial import words as adversarial
from tests.stages.test_token_flow import words as token_flow
from tests.stages.test_tokenizer_released import words as released

MIXED = ("trainer.precision=bf16-mixed",)
CLIPPED = (*MIXED, "trainer.gradient_clip_val=0.5")


def check(words: list[str], metrics: object) -> None:
    run = train(words)
    rows = metrics(run)  # type: ignore[operator]
    losses = [float(value) for row in rows for name, value in row.items()
              if "train/" in name and "loss" in name and value]  # fmt: skip
    assert losses and torch.tensor(losses).isfinite().all(), rows
    assert list((run / "model").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "stage",
    ["tokenizer_linguistic", "tokenizer_semantic", "pretrain", "sft_2", "dpo", "vocoder_flow",
     "vocoder_waveform"],
)  # fmt: skip
def test_the_walkthroughs_stages(
    stage: str, chain: Chain, tmp_path: Path, metrics: object
) -> None:
    check(chain.words(stage, tmp_path, *CLIPPED, "run.steps=4"), metrics)


@pytest.mark.parametrize("book", ["linguistic", "semantic"])
def test_tokenizers_of_the_released_kind(
    book: str, chain: Chain, tmp_path: Path, metrics: object
) -> None:
    check(released(book, chain / "corpus", tmp_path, *CLIPPED, "run.steps=4"), metrics)


@pytest.mark.parametrize("kind", ["vocos", "hift"])
def test_heads_against_judges(kind: str, chain: Chain, tmp_path: Path, metrics: object) -> None:
    check(adversarial(kind, chain, tmp_path, *MIXED, "stage.largest_gradient=1.0"), metrics)


def test_the_full_size_flow(chain: Chain, tmp_path: Path, metrics: object) -> None:
    check(token_flow(chain, tmp_path, *CLIPPED), metrics)
