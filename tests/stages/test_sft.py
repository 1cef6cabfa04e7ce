"""Fine-tuning: it starts from its parent and learns the answer alone."""

import pytest

from aqaa.backbone.loading import load_backbone
from aqaa.errors import UsageError
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


def test_an_epoch_of_the_data_is_a_number_of_steps(chain: Chain, tmp_path, metrics, capsys) -> None:
    """60 rows in batches of 4, two a step: 15 batches are 8 steps; a part of them is replayed."""
    from aqaa.runtime.run import train

    words = chain.words("sft_2", tmp_path, "epochs.count=1", "epochs.of=aqtaa")
    words += ["data.tasks.aqtaa.batch=4", "trainer.accumulate_grad_batches=2"]
    run = train("sft", compose("sft", words[1:]))
    assert "epochs.count=1: 8 steps" in capsys.readouterr().out
    assert read_json(run / "lineage.json")["steps"] == 8
    more = ["+data.tasks.replay={format: aqta, share: 0.25, batch: 2}", "epochs.count=2"]
    words = chain.words("sft_2", tmp_path / "replayed", "epochs.of=aqtaa", *more)
    run = train("sft", compose("sft", [*words[1:], "data.tasks.aqtaa.batch=10"]))
    assert read_json(run / "lineage.json")["steps"] == 15  # 2 x 6 batches are 4 in 5
    names = set(metrics(run)[0])
    assert {"train/replay", "train/replay_tokens", "validation/replay"} <= names


def test_epochs_that_are_none_are_refused(chain: Chain, tmp_path) -> None:
    from aqaa.runtime.run import train

    for word in ("epochs.count=0", "epochs.count=-1"):
        with pytest.raises(UsageError, match=f"{word} on trainer.devices=1, num_nodes=1 ranks"):
            train("sft", compose("sft", chain.words("sft_2", tmp_path, word)[1:]))
