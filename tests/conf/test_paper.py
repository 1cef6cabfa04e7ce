"""Presets of the backbone's stages hold the numbers that the paper states."""

from typing import Any

import pytest
from torch import nn

from aqaa.data.mixture import read_sources
from aqaa.runtime.compose import compose
from aqaa.stages.optimizer import OptimizerSettings

AUDIO = ("continuation", "interleaved", "asr", "tts")
# By step of pre-training: audio and text; the kinds of audio; the rate of the table over the rest,
# and the rates at the beginning and at the end (Step-Audio, section 4.2). Images are left out.
PRETRAIN: dict[int, dict[str, Any]] = {
    1: {"audio": 2, "text": 1, "kinds": (1, 0, 0, 0), "table": 5.0, "rates": (2e-5, 2e-5)},
    2: {"audio": 2, "text": 1, "kinds": (1, 1, 0, 0), "table": 5.0, "rates": (2e-5, 2e-5)},
    3: {"audio": 4, "text": 3, "kinds": (1, 1, 1, 1), "table": 1.0, "rates": (2e-5, 5e-6)},
}


class Network(nn.Module):
    """A table, a matrix and a head of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(4, 2)
        self.inner = nn.Linear(2, 2, bias=False)
        self.lm_head = nn.Linear(2, 4, bias=False)


def rates(cfg: Any) -> dict[str, tuple[float, float]]:
    """Of each group the rate after the warm-up and at the end."""
    settings = {k: v for k, v in cfg.optim.items() if k != "_target_"}
    steps = int(cfg.run.steps)
    optim = OptimizerSettings(**settings)
    built = optim.build(Network(), steps)["optimizer"]
    peak, end = (optim.factor(step, steps) for step in (settings["warmup_steps"], steps - 1))
    first = {group["name"]: group["initial_lr"] for group in built.param_groups}
    return {name: (rate * peak, rate * end) for name, rate in first.items()}


@pytest.mark.parametrize("step", PRETRAIN)
def test_the_three_steps_of_pre_training(step: int) -> None:
    cfg = compose("pretrain", [f"preset=paper/pretrain_{step}"])
    paper = PRETRAIN[step]
    sources = read_sources(cfg.data.tasks)
    shares = {name: source.share for name, source in sources.items()}
    text = shares.pop("tqta")
    assert sum(shares.values()) / text == pytest.approx(paper["audio"] / paper["text"])
    kinds = [shares.pop(name, 0.0) for name in AUDIO]
    assert not shares
    assert [kind / kinds[0] for kind in kinds] == list(paper["kinds"])
    assert cfg.data.row_tokens  # in packed rows shares are of ids
    assert dict(cfg.data.tasks.image) == {"share": 0}
    found = rates(cfg)
    assert found["backbone"] == pytest.approx(paper["rates"], rel=0.01)
    for table in ("embedding", "head"):
        wanted = [paper["table"] * rate for rate in paper["rates"]]
        assert found[table] == pytest.approx(wanted, rel=0.01)
    assert (cfg.optim.schedule == "cosine") is (step == 3)
    assert cfg.stage.normalise == "table" and set(cfg.stage.slot_weights.values()) == {1.0}
    before = {1: "init", 2: "pretrain_1/model", 3: "pretrain_2/model"}[step]
    assert cfg.parents.model == f"runs/{before}"


@pytest.mark.parametrize(
    ("preset", "main", "parent"),
    [("sft_1", {"aqta", "aqtaa"}, "pretrain_3"), ("sft_2", {"aqtaa"}, "sft_1")],
)
def test_the_rounds_of_fine_tuning(preset: str, main: set[str], parent: str) -> None:
    cfg = compose("sft", [f"preset=paper/{preset}"])
    sources = read_sources(cfg.data.tasks)
    answers = {name: s.share for name, s in sources.items() if s.format in ("aqta", "aqtaa")}
    assert set(answers) == main and len(set(answers.values())) == 1
    assert sum(answers.values()) > 0.9  # the rest is replay, which is ours
    assert cfg.epochs.count == 1 and cfg.parents.model == f"runs/{parent}/model"
    assert cfg.stage.normalise == "table" and set(cfg.stage.slot_weights.values()) == {1.0}


def test_what_the_second_round_takes_and_replays_can_be_said() -> None:
    words = ["data.tasks.aqtaa.where={meta.quality: {min: 4}}", "data.tasks.replay.share=0.05"]
    cfg = compose("sft", ["preset=paper/sft_2", *words])
    sources = read_sources({k: dict(v) for k, v in cfg.data.tasks.items()})
    assert sources["replay"].format == "aqta" and sources["replay"].share == 0.05
    assert dict(sources["aqtaa"].where) == {"meta.quality": {"min": 4}}
