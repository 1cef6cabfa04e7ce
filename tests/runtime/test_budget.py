"""Budgets of ids: a preset keeps its proportions at any size."""

import pytest

from aqaa.errors import UsageError
from aqaa.runtime.budget import share_of_steps, step_tokens, steps_of_budget
from aqaa.runtime.compose import compose

PRETRAIN = [f"preset=paper/pretrain_{n}" for n in (1, 2, 3)]
# Tokens of the paper's stages, of which images have a part; the third's total is derived.
PAPER = {1: (1.2e12, 1 / 4), 2: (0.8e12, 1 / 4), 3: (1.0e12, 3 / 10)}


def steps(*words: str) -> list[int]:
    return [int(compose("pretrain", [preset, *words]).run.steps) for preset in PRETRAIN]


def test_the_presets_read_what_the_paper_reads() -> None:
    for found, (tokens, images) in zip(steps(), PAPER.values(), strict=True):
        assert found * 128 * 8 * 16384 == pytest.approx(tokens * (1 - images), rel=2e-4)
    shares = [compose("pretrain", [preset]).budget.share for preset in PRETRAIN]
    assert sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize("tokens", [1e9, 2e10])
def test_a_smaller_budget_keeps_the_proportions(tokens: float) -> None:
    one_rank = ("trainer.devices=1", "trainer.num_nodes=1", "trainer.accumulate_grad_batches=1")
    full, small = steps(), steps(*one_rank, f"budget.tokens={tokens}")
    assert sum(small) * 16384 == pytest.approx(tokens, rel=1e-3)
    for one, other in zip(full, small, strict=True):
        assert other / sum(small) == pytest.approx(one / sum(full), rel=1e-3)
    tiny = compose("pretrain", [PRETRAIN[0], *one_rank, "budget.tokens=1e7"])
    assert tiny.run.steps == 250
    assert tiny.optim.warmup_steps == 10 and tiny.trainer.val_check_interval == 5
    assert tiny.data.steps == tiny.trainer.max_steps == 250


def test_more_ranks_take_fewer_steps() -> None:
    cfg = compose("pretrain", [PRETRAIN[0], "trainer.num_nodes=4", "data.rows=2"])
    assert step_tokens(cfg) == 4 * 8 * 8 * 2 * 16384
    assert steps_of_budget(_root_=cfg) == round(2.2e12 * 0.4091 / step_tokens(cfg))
    assert share_of_steps(0, _root_=cfg) == 1


def test_steps_of_ones_own_win() -> None:
    assert compose("pretrain", [PRETRAIN[0], "run.steps=7"]).trainer.max_steps == 7


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["budget.tokens=0"], "budget.tokens=0 and budget.share=0.4091: one id or more"),
        (["budget.share=1.5"], "budget.share=1.5: one id or more"),
        (["data.row_tokens=null"], "needs packed rows, or a step has no fixed number of ids"),
        (["trainer.devices=auto"], "numbers of trainer.devices=auto"),
    ],
)
def test_a_budget_that_cannot_be_counted_is_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        compose("pretrain", [PRETRAIN[0], *words])
    assert "\n" not in str(caught.value)


def test_a_plan_of_other_rows_takes_as_many_ids() -> None:
    from omegaconf import OmegaConf

    from aqaa.runtime.catalogue import conf_dir
    from aqaa.runtime.planner import make_plan
    from aqaa.runtime.planner_time import Hardware

    gpu, backbone = (OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{path}.yaml"))
                     for path in ("gpu/h200", "backbone/step1_130b"))  # fmt: skip
    plan = make_plan("pretrain", [PRETRAIN[1]], gpu=Hardware(**gpu), backbone=backbone,  # type: ignore[arg-type]
                     row_tokens=4096, nodes=32)  # fmt: skip
    assert plan.steps == round(2.2e12 * 0.2727 / (32 * 8 * 8 * 4096))
    told = compose("pretrain", [w for w in plan.overrides if "=" in w] + ["trainer.num_nodes=32"])
    assert told.run.steps == plan.steps
