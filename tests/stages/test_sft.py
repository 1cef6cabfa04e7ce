"""Fine-tuning: it starts from its parent and learns the answer alone."""

import pytest

from aqaa.backbone.loading import load_backbone
from aqaa.runtime.compose import compose
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.stages.sft import Sft
from aqaa.storage import load_tensors, read_json
from aqaa.vocabulary import TOKEN_TYPES
from tests.conftest import Chain

FIGURES = ("loss", "entropy", "accuracy")


def test_a_run_without_steps_of_any_size_is_its_parent(chain: Chain, tmp_path) -> None:
    from aqaa.runtime.run import train

    verb, *words = chain.words("sft_2", tmp_path, "optim.lr=0", "run.steps=2")
    run = train(verb, compose(verb, words))
    mine = load_tensors(run / "model" / "model.safetensors")
    parent = load_tensors(chain / "sft_1" / "model" / "model.safetensors")
    assert all(mine[name].equal(parent[name]) for name in parent)


def test_the_second_round_has_one_task(chain: Chain, metrics) -> None:
    rows = metrics(chain / "sft_2")
    assert all(row["train/aqtaa"] == row["train/loss"] for row in rows)
    assert {name for name in rows[0] if name.startswith("train/")} == {
        *("train/loss", "train/aqtaa", "train/aqtaa_tokens"),
        *(f"train/{kind}_{what}" for kind in TOKEN_TYPES for what in FIGURES),
    }


def test_the_export_is_a_backbone_folder(chain: Chain) -> None:
    backbone = load_backbone(chain / "sft_1" / "model")
    assert backbone.ids.tokenizer_hash == read_json(chain / "tokens/meta.json")["tokenizer_hash"]


def test_nothing_is_loaded_before_its_time(chain: Chain) -> None:
    stage = Sft(model=str(chain / "nowhere"), optimizer=OptimizerSettings(lr=1.0))
    with pytest.raises(AssertionError, match="configure_model comes first"):
        _ = stage.backbone
