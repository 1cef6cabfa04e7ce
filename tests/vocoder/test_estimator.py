"""The U-Net against its formulas written out by tensor name, with attention as a loop."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aqaa.vocoder.estimator import Estimator, embed_time
from tests.golden.make import randomise

HEADS, HEAD_WIDTH = 3, 4


def net(channels: tuple[int, ...] = (8, 16)) -> Estimator:
    made = Estimator(
        channels_in=12, channels_out=3, channels=channels, heads=HEADS, head_width=HEAD_WIDTH,
        blocks=2, middle=1,
    )  # fmt: skip
    return randomise(made)


class Written:
    """The same network from its state dict."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def get(self, name: str) -> tuple[Tensor, Tensor | None]:
        return self.state[f"{name}.weight"], self.state.get(f"{name}.bias")

    def block(self, name: str, x: Tensor) -> Tensor:
        x = F.conv1d(x, *self.get(f"{name}.block.0"), padding=1)
        x = F.group_norm(x, 8, *self.get(f"{name}.block.1"))
        return x * torch.tanh(torch.log1p(x.exp()))

    def attend(self, name: str, x: Tensor) -> Tensor:
        q, k, v = (F.linear(x, *self.get(f"{name}.to_{part}")) for part in "qkv")
        heard = torch.zeros_like(q)
        for head in range(HEADS):
            part = slice(HEAD_WIDTH * head, HEAD_WIDTH * (head + 1))
            for i in range(len(x)):
                scores = torch.stack(
                    [q[i, part] @ k[j, part] / HEAD_WIDTH**0.5 for j in range(len(x))]
                )
                heard[i, part] = scores.softmax(0) @ v[:, part]
        return F.linear(heard, *self.get(f"{name}.to_out.0"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.get(name)
        spread = x.var(1, unbiased=False, keepdim=True)
        return (x - x.mean(1, keepdim=True)) / (spread + 1e-5).sqrt() * weight + bias

    def level(self, name: str, x: Tensor, time: Tensor) -> Tensor:
        mish = time * torch.tanh(F.softplus(time))
        h = self.block(f"{name}.0.block1", x)
        h = h + F.linear(mish, *self.get(f"{name}.0.mlp.1"))[:, :, None]
        h = self.block(f"{name}.0.block2", h)
        x = (h + F.conv1d(x, *self.get(f"{name}.0.res_conv")))[0].T
        for i in range(2):
            part = f"{name}.1.{i}"
            x = x + self.attend(f"{part}.attn1", self.norm(f"{part}.norm1", x))
            inner = F.linear(self.norm(f"{part}.norm3", x), *self.get(f"{part}.ff.net.0.proj"))
            inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
            x = x + F.linear(inner, *self.get(f"{part}.ff.net.2"))
        return x.T[None]

    def __call__(self, x: Tensor, time: float) -> Tensor:
        rates = [1000 * time * 1e4 ** (-k / 5) for k in range(6)]
        t = torch.tensor([[math.sin(r) for r in rates] + [math.cos(r) for r in rates]])
        t = F.linear(t, *self.get("time_mlp.linear_1"))
        t = F.linear(t * torch.sigmoid(t), *self.get("time_mlp.linear_2"))
        a = self.level("down_blocks.0", x, t)
        h = F.conv1d(a, *self.get("down_blocks.0.2.conv"), stride=2, padding=1)
        b = self.level("down_blocks.1", h, t)
        h = F.conv1d(b, *self.get("down_blocks.1.2"), padding=1)
        h = self.level("mid_blocks.0", h, t)
        h = self.level("up_blocks.0", torch.cat([h, b], 1), t)
        h = F.conv_transpose1d(h, *self.get("up_blocks.0.2.conv"), stride=2, padding=1)
        h = self.level("up_blocks.1", torch.cat([h[:, :, : a.shape[2]], a], 1), t)
        h = F.conv1d(h, *self.get("up_blocks.1.2"), padding=1)
        return F.conv1d(self.block("final_block", h), *self.get("final_proj"))


@pytest.mark.parametrize("frames", [6, 7, 3])
@torch.no_grad()
def test_it_is_what_is_written(frames: int) -> None:
    network, x = net(), torch.randn(1, 12, frames)
    wanted = Written(network.state_dict())(x, 0.3)
    torch.testing.assert_close(network(x, torch.tensor([0.3])), wanted, rtol=0, atol=2e-5)


def test_the_time_has_its_two_ends() -> None:
    found = embed_time(torch.tensor([0.0, 1.0]), 6)
    rates = torch.tensor([1000.0, 10.0, 0.1])
    torch.testing.assert_close(found[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(found[1], torch.cat([rates.sin(), rates.cos()]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [(8,), (8, 16), (8, 16, 24)])
@pytest.mark.parametrize(("frames", "short"), [(12, 8), (13, 7), (12, 5)])
@torch.no_grad()
def test_a_padded_batch_equals_single_items(
    channels: tuple[int, ...], frames: int, short: int
) -> None:
    network, x, time = net(channels), torch.randn(2, 12, frames), torch.tensor([0.2, 0.9])
    mask = torch.ones(2, 1, frames)
    mask[1, :, short:] = 0
    x[1, :, short:] = 50.0  # whatever stands in the padding
    together = network(x, time, mask)
    assert together.shape == (2, 3, frames)
    assert not together[1, :, short:].any()
    torch.testing.assert_close(together[:1], network(x[:1], time[:1]), rtol=0, atol=2e-5)
    alone = network(x[1:, :, :short], time[1:])
    torch.testing.assert_close(together[1:, :, :short], alone, rtol=0, atol=2e-5)


def test_every_parameter_learns() -> None:
    network = net().train()
    network(torch.randn(2, 12, 6), torch.rand(2)).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
