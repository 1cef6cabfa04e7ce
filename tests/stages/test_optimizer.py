"""AdamW and its schedule."""

import math
from dataclasses import replace

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
        self.scales = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def groups(settings: OptimizerSettings, net: nn.Module | None = None) -> dict[str, dict]:
    net = net or Net()
    optimizer = settings.build(net, 100)["optimizer"]
    names = {id(p): name for name, p in net.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def test_matrices_decay_and_vectors_do_not() -> None:
    found = groups(OptimizerSettings(lr=1.0, weight_decay=0.3))
    assert set(found) == {
        *("embed_tokens.weight", "layer.weight", "layer.bias", "norm.weight", "norm.bias"),
        "lm_head.weight",
        "scales",
    }
    for name, group in found.items():
        matrix = name.endswith("weight") and "norm" not in name
        assert group["weight_decay"] == (0.3 if matrix else 0)
        assert group["name"].endswith("no decay") is not matrix


def test_what_decays_is_told_by_kind_and_by_the_whole_shape() -> None:
    class WideNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 3))

    net = nn.ModuleDict({"wide": WideNorm(), "layer": nn.Linear(2, 2), "sharded": nn.Linear(2, 2)})
    net.register_parameter("position_bias", nn.Parameter(torch.ones(2, 2)))
    for parameter in net["sharded"].parameters():
        parameter.ds_shape = parameter.shape  # as ZeRO-3 leaves them
        parameter.data = torch.empty(0)
    found = groups(OptimizerSettings(lr=1.0, weight_decay=0.3), net)
    decays = {name for name, group in found.items() if group["weight_decay"]}
    assert decays == {"layer.weight", "sharded.weight"}


def test_embedding_and_head_have_a_rate_of_their_own() -> None:
    settings = OptimizerSettings(lr=2e-5, embedding_lr_ratio=5.0, betas=(0.8, 0.9), warmup_steps=0)
    for name, group in groups(settings).items():
        table = name in ("embed_tokens.weight", "lm_head.weight")
        assert group["lr"] == pytest.approx(1e-4 if table else 2e-5)
        assert group["betas"] == (0.8, 0.9)
    for name, group in groups(replace(settings, head_lr_ratio=2.0)).items():
        ratio = {"embed_tokens.weight": 5, "lm_head.weight": 2}.get(name, 1)
        assert group["lr"] == pytest.approx(2e-5 * ratio)
        assert group["name"].split(",")[0] == {5: "embedding", 2: "head", 1: "backbone"}[ratio]


def test_a_shared_table_is_in_one_group() -> None:
    net = Net()
    net.lm_head.weight = net.embed_tokens.weight
    built = OptimizerSettings(lr=1.0).build(net, 10)["optimizer"]
    names = [group["name"] for group in built.param_groups if len(group["params"])]
    assert "embedding" in names and "head" not in names


def test_sgd_steps_by_the_gradient_alone() -> None:
    net = nn.Linear(2, 1, bias=False)
    settings = OptimizerSettings(lr=0.5, algorithm="sgd", weight_decay=0.0, warmup_steps=0)
    before = net.weight.detach().clone()
    optimizer = settings.build(net, 10)["optimizer"]
    net(torch.tensor([2.0, -1.0])).backward()
    optimizer.step()
    assert torch.equal(net.weight.detach(), before - 0.5 * torch.tensor([[2.0, -1.0]]))


def test_wsd_stays_and_then_falls_in_a_line() -> None:
    s = OptimizerSettings(lr=1.0, warmup_steps=10, schedule="wsd", final_ratio=0.1, decay_share=0.2)
    assert s.factor(4, 100) == pytest.approx(0.5)
    assert {s.factor(step, 100) for step in range(9, 79)} == {1.0}
    assert s.factor(79, 100) == pytest.approx(1.0)
    assert s.factor(89, 100) == pytest.approx(0.1 + 0.9 / 2)
    assert s.factor(99, 100) == s.factor(1000, 100) == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "wsd"])
def test_a_resumed_schedule_goes_on_exactly(schedule: str) -> None:
    settings = OptimizerSettings(lr=0.1, warmup_steps=3, schedule=schedule, decay_share=0.4)  # type: ignore[arg-type]

    def rates(built: dict, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            found.append(built["optimizer"].param_groups[0]["lr"])
            built["optimizer"].step()
            built["lr_scheduler"]["scheduler"].step()
        return found

    whole = rates(settings.build(Net(), 10), 10)  # type: ignore[arg-type]
    for cut in range(1, 10):
        first, second = settings.build(Net(), 10), settings.build(Net(), 10)
        assert rates(first, cut) == whole[:cut]  # type: ignore[arg-type]
        second["optimizer"].load_state_dict(first["optimizer"].state_dict())
        kept = first["lr_scheduler"]["scheduler"].state_dict()  # type: ignore[index]
        second["lr_scheduler"]["scheduler"].load_state_dict(kept)  # type: ignore[index]
        assert rates(second, 10 - cut) == whole[cut:]  # type: ignore[arg-type]


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
    built = settings.build(net, 8)
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]  # type: ignore[index]
    assert built["lr_scheduler"]["interval"] == "step"  # type: ignore[index]
    for step in range(8):
        for group in optimizer.param_groups:
            table = group["params"][0] is net.embed_tokens.weight
            table = table or group["params"][0] is net.lm_head.weight
            assert group["lr"] == pytest.approx(settings.factor(step, 8) * (5 if table else 1))
        optimizer.step()
        scheduler.step()  # type: ignore[union-attr]


def test_gradients_are_clipped_in_mixed_precision_too() -> None:
    # What trainer=gpu does, where whole copies are trained.
    from lightning.pytorch.plugins.precision import MixedPrecision

    net = nn.Linear(2, 1, bias=False)
    optimizer = OptimizerSettings(lr=0.5).build(net, 10)["optimizer"]
    net(torch.tensor([3.0, 4.0])).backward()
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 1.0)
    torch.testing.assert_close(net.weight.grad, torch.tensor([[0.6, 0.8]]))
    optimizer.step()
