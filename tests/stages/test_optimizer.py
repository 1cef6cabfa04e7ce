"""AdamW and its schedule."""

import math

import pytest
import torch
from torch import nn

from aqaa.stages.optimizer import OptimizerSettings


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(4, 3)
        self.layer = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.lm_head = nn.Linear(3, 4, bias=False)
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def groups(settings: OptimizerSettings) -> dict[str, dict]:
    net = Net()
    optimizer = settings.build(net.named_parameters(), 100)["optimizer"]
    names = {id(p): name for name, p in net.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def test_matrices_decay_and_vectors_do_not() -> None:
    found = groups(OptimizerSettings(lr=1.0, weight_decay=0.3))
    assert set(found) == {
        *("embed_tokens.weight", "layer.weight", "layer.bias", "norm.weight", "norm.bias"),
        "lm_head.weight",
    }
    for name, group in found.items():
        matrix = name.endswith("weight") and "norm" not in name
        assert group["weight_decay"] == (0.3 if matrix else 0)


def test_embedding_and_head_have_a_rate_of_their_own() -> None:
    settings = OptimizerSettings(lr=2e-5, embedding_lr_ratio=5.0, betas=(0.8, 0.9), warmup_steps=0)
    for name, group in groups(settings).items():
        table = name in ("embed_tokens.weight", "lm_head.weight")
        assert group["lr"] == pytest.approx(1e-4 if table else 2e-5)
        assert group["betas"] == (0.8, 0.9)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_rate_rises_and_falls(schedule: str) -> None:
    s = OptimizerSettings(lr=1.0, warmup_steps=10, schedule=schedule, final_ratio=0.25)  # type: ignore[arg-type]
    assert s.factor(0, 100) == pytest.approx(0.1)
    rising = [s.factor(step, 100) for step in range(10)]
    assert rising == sorted(rising)
    if schedule == "constant":
        assert {s.factor(step, 100) for step in range(9, 101)} == {1.0}
        return
    assert s.factor(50, 101) == pytest.approx(0.25 + 0.75 * 0.5)
    assert s.factor(98, 100) > s.factor(99, 100) == s.factor(1000, 100) == pytest.approx(0.25)
    assert s.factor(0, 1) == pytest.approx(0.1)
    loop = [
        min(1, (k + 1) / 10) * (0.25 + 0.75 * (1 + math.cos(math.pi * k / 99)) / 2)
        for k in range(100)
    ]
    assert [s.factor(k, 100) for k in range(100)] == pytest.approx(loop)


def test_the_scheduler_moves_every_group() -> None:
    net = Net()
    settings = OptimizerSettings(lr=1.0, warmup_steps=4, embedding_lr_ratio=5.0)
    built = settings.build(net.named_parameters(), 8)
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]  # type: ignore[index]
    assert built["lr_scheduler"]["interval"] == "step"  # type: ignore[index]
    for step in range(8):
        for group in optimizer.param_groups:
            table = group["params"][0] is net.embed_tokens.weight
            table = table or group["params"][0] is net.lm_head.weight
            assert group["lr"] == pytest.approx(settings.factor(step, 8) * (5 if table else 1))
        optimizer.step()
        scheduler.step()  # type: ignore[union-attr]
