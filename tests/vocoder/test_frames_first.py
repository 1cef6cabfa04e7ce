"""Layers on frames before channels against torch's own on channels before frames."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqaa.layers import MaskedGroupNorm
from aqaa.vocoder.estimator import Estimator
from aqaa.vocoder.frames_first import Convolution, Gelu, GroupNormOfFrames, lay_out, mish


def gradients(module: nn.Module, x: Tensor, out: Tensor) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel()).view_as(out)
    return list(torch.autograd.grad((out * weight).sum(), [x, *module.parameters()]))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1)])
@pytest.mark.parametrize("frames", [1, 6, 7])
@pytest.mark.parametrize("laid_out", [True, False])
def test_a_convolution_is_torchs(
    kernel: int, stride: int, padding: int, frames: int, laid_out: bool
) -> None:
    layer = Convolution(4, 6, kernel, stride, padding)
    lay_out(nn.ModuleList([layer]), inputs_first=laid_out)
    x = torch.randn(2, frames, 4, requires_grad=True)
    wanted = F.conv1d(x.mT, layer.weight, layer.bias, stride, padding).mT
    found = layer(x)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(gradients(layer, x, found), gradients(layer, x, wanted), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("padded", [False, True])
def test_the_norm_is_the_masked_one(padded: bool) -> None:
    ours, other = GroupNormOfFrames(3, 6), MaskedGroupNorm(3, 6)
    for norm in (ours, other):
        nn.init.uniform_(norm.weight, -1, 1, torch.Generator().manual_seed(1))
        nn.init.uniform_(norm.bias, -1, 1, torch.Generator().manual_seed(2))
    x, mask = torch.randn(2, 9, 6), None
    if padded:
        mask = torch.ones(2, 9, 1)
        mask[1, 5:] = 0
    wanted = other(x.mT, None if mask is None else mask.mT).mT
    found = ours(x, mask)
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1, :5], wanted[1, :5])


def test_the_norm_bears_a_mean_far_from_zero() -> None:
    x = torch.randn(1, 50, 8)
    wanted = F.group_norm((x.double() + 3000).mT, 2).mT
    torch.testing.assert_close(
        GroupNormOfFrames(2, 8)(x + 3000, None).double(), wanted, rtol=0, atol=2e-3
    )


def test_mish_is_torchs_with_and_without_gradients() -> None:
    x = torch.cat([torch.linspace(-60, 60, 4001), torch.tensor([1e4, -1e4, 0.0])])
    kept, exact = x.clone(), F.mish(x.double()).float()
    torch.testing.assert_close(mish(x), exact, rtol=2e-6, atol=1e-12)
    assert torch.equal(x, kept)
    learnt = x.requires_grad_()
    assert torch.equal(mish(learnt), F.mish(learnt))


def test_gelu_writes_over_its_input_only_where_nothing_learns() -> None:
    x = torch.randn(50)
    wanted, learnt = F.gelu(x), x.clone().requires_grad_()
    again = learnt.clone()
    assert torch.equal(Gelu()(again), wanted) and torch.equal(again, learnt)
    assert torch.equal(Gelu()(x), wanted) and torch.equal(x, wanted)


def net() -> Estimator:
    return Estimator(
        channels_in=8, channels_out=2, channels=(8,), heads=2, head_width=4, blocks=1, middle=1
    )


def inputs_first(module: nn.Module) -> list[bool]:
    weights = [m.weight for m in module.modules() if isinstance(m, nn.Linear | Convolution)]
    square = [w for w in weights if w.shape[0] > 1 and w.shape[1] > 1]
    return [w.permute(*range(w.dim() - 1, -1, -1)).is_contiguous() for w in square]


def test_weights_lie_inputs_first_in_evaluation_alone() -> None:
    module = nn.Sequential(net())
    wanted = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert not any(inputs_first(module))
    assert all(inputs_first(module.eval()))
    assert not any(inputs_first(module.train()))
    assert all(p.is_contiguous() for p in module.parameters())
    for name, tensor in module.eval().state_dict().items():
        assert torch.equal(tensor, wanted[name])


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_resumed_training_goes_on_as_the_unbroken_one(evaluating: bool) -> None:
    """With the optimizer of the stages, and states that come back from a file."""
    torch.manual_seed(0)
    module, x = net().train(not evaluating), torch.randn(4, 2, 8, 6)

    def trainer(model: Estimator) -> torch.optim.AdamW:
        return torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)

    def step(model: Estimator, optimizer: torch.optim.AdamW, batch: Tensor) -> None:
        optimizer.zero_grad()
        model(batch, torch.tensor([0.2, 0.7])).pow(2).mean().backward()
        optimizer.step()

    optimizer = trainer(module)
    for batch in x[:2]:
        step(module, optimizer, batch)
    with torch.no_grad():
        module.eval()(x[0], torch.tensor([0.1]))  # as a validation in between does
    module.train(not evaluating)
    state = deepcopy(optimizer.state_dict())
    for kept in state["state"].values():
        kept |= {name: value.contiguous() for name, value in kept.items()}
    again = net().train(not evaluating)
    again.load_state_dict({n: t.contiguous() for n, t in module.state_dict().items()})
    resumed = trainer(again)
    resumed.load_state_dict(state)
    for batch in x[2:]:
        step(module, optimizer, batch)
        step(again, resumed, batch)
    for one, other in zip(module.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
