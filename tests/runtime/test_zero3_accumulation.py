"""Two processes under ZeRO train as one does: SGD, no clipping, two batches accumulated.

Adam and clipping rescale a gradient that was divided once too often; SGD shows it. Batches
supervise very unequally many positions, and count by them.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import TwoRanks
from tests.runtime.two_ranks import STEPS, changed, run, write_models


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "layers", "offload", "llama"])
def test_two_ranks_train_as_one_process(name: str, two_ranks: TwoRanks) -> None:
    single = "llama" if name == "llama" else "zero3"
    alone = two_ranks.alone(single)["losses"]
    together = two_ranks.losses(name)
    assert len(alone) == len(together) == 4 * STEPS  # batches, each seen by one rank
    assert alone[0] - min(alone[-4:]) > 0.5  # it does learn
    assert together == pytest.approx(alone, abs=1e-5)
    assert changed(two_ranks.one / single / "model", two_ranks.two / name / "model") < 1e-5


def means(seen: dict[str, Any], batches: int) -> list[float]:
    """Of every step, the mean over the positions of its batches."""
    parts = [a * b for a, b in zip(seen["losses"], seen["shares"], strict=True)]
    return [sum(parts[i : i + batches]) / batches for i in range(0, len(parts), batches)]


@pytest.mark.parametrize("kind", ["padded", "packed", "dpo"])
def test_eight_batches_of_one_are_one_batch_of_eight(kind: str, tmp_path: Path) -> None:
    write_models(tmp_path)
    rows, packs = (8, 1), kind == "packed"
    eight, one = (run(f"{kind}{n}", tmp_path, ranks=1, rows=n, packs=packs) for n in rows)
    assert means(one, 8) == pytest.approx(eight["losses"], rel=1e-6)
    assert changed(tmp_path / f"{kind}1/model", tmp_path / f"{kind}8/model") < 1e-6
    if kind == "dpo":  # a pair is the unit, and all batches have as many
        return
    assert max(one["shares"]) > 5 * min(one["shares"])
    # Were each batch to count alike, it would be another training.
    run("alike", tmp_path, ranks=1, rows=1, packs=packs)
    assert changed(tmp_path / "alike/model", tmp_path / f"{kind}8/model") > 1e-2


@pytest.mark.parametrize("name", ["slower", "faster"])
def test_new_rows_have_their_rate_in_shards_too(name: str, two_ranks: TwoRanks) -> None:
    # Slower ones lie on both ranks (of ZeRO-1), what is slower than the faster ones on one (3).
    alone = two_ranks.alone(name)["losses"]
    assert two_ranks.losses(name) == pytest.approx(alone, abs=1e-5)
    assert changed(two_ranks.one / f"{name}/model", two_ranks.two / f"{name}/model") < 1e-5
    assert changed(two_ranks.one / f"{name}/model", two_ranks.one / "zero3/model") > 1e-2


def test_layers_computed_again_are_the_same_to_the_bit(two_ranks: TwoRanks) -> None:
    assert two_ranks.alone("layers")["losses"] == two_ranks.alone("zero3")["losses"]
    assert changed(two_ranks.one / "layers/model", two_ranks.one / "zero3/model") == 0


def test_without_the_cure_the_gradient_is_divided_twice(two_ranks: TwoRanks) -> None:
    alone, uncured = two_ranks.alone("zero3")["losses"], two_ranks.losses("uncured")
    assert uncured[:4] == pytest.approx(alone[:4], abs=1e-5)  # before the first step
    gaps = [abs(a - b) for a, b in zip(alone[4:], uncured[4:], strict=True)]
    assert min(gaps) > 1e-2


def test_were_batches_to_count_alike_ranks_would_train_otherwise(two_ranks: TwoRanks) -> None:
    # Mean of means: of one process and of two the same, and not that of one large batch.
    assert two_ranks.losses("alike")[:4] == pytest.approx(two_ranks.losses("zero3")[:4], abs=1e-5)
    assert changed(two_ranks.one / "zero3/model", two_ranks.two / "alike/model") > 1e-2


def test_parameters_are_in_parts(two_ranks: TwoRanks) -> None:
    first, second = two_ranks.seen("zero3")
    assert first["whole"] == second["whole"] == two_ranks.alone("zero3")["whole"]
    assert first["here"] == second["here"] == 0
    assert first["shards"] == second["shards"] == first["whole"] / 2
    for whole in two_ranks.seen("zero1"):
        assert whole["here"] == whole["whole"] and whole["shards"] == 0


def test_training_starts_from_the_same_bytes(two_ranks: TwoRanks) -> None:
    # A rate of zero: what is written is what was loaded, into shards and out of them.
    two_ranks.alone("start")
    for folder in (two_ranks.one, two_ranks.two):
        assert changed(folder / "init", folder / "start/model") == 0
    first = (two_ranks.one / "start/model/model.safetensors").read_bytes()
    assert first == (two_ranks.two / "start/model/model.safetensors").read_bytes()


def test_ranks_check_unequal_shares_without_waiting_for_each_other(two_ranks: TwoRanks) -> None:
    # Three batches of 3, 3 and 1 rows: the second rank has one, and keeps the first company.
    first, second = (seen["validation"] for seen in two_ranks.seen("start"))
    assert first == second and "validation/text_entropy" in first
    assert first == pytest.approx(two_ranks.alone("start")["validation"], abs=1e-6)


@pytest.mark.parametrize("name", ["dpo", "dpo_lora"])
def test_preferences_too_with_the_scores_of_the_start(name: str, two_ranks: TwoRanks) -> None:
    alone = two_ranks.alone(name)
    for seen in two_ranks.seen(name):
        for found, wanted in zip(seen["reference"], alone["reference"], strict=True):
            assert found == pytest.approx(wanted, abs=1e-5)
    losses = two_ranks.losses(name)
    assert losses[:4] == pytest.approx([0.693147] * 4, abs=1e-5)
    assert abs(losses[5] - losses[0]) > 0.01
    assert losses == pytest.approx(alone["losses"], abs=1e-5)
    # Of what is masked there is a margin too, in shards as in one piece.
    for seen in (alone, *two_ranks.seen(name)):
        assert abs(seen["figures"]["train/semantic_margin"]) > 1e-4
