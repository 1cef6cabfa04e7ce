"""The waveform head against its formulas by tensor name, its transforms against loops."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aqaa.errors import UsageError
from aqaa.vocoder.hift import CLAMP, Hift
from tests.golden.make import hift


def normed(state: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    direction = state[f"{name}.weight_v"]
    length = direction.flatten(1).norm(dim=1)[:, None, None]
    return direction / length * state[f"{name}.weight_g"], state[f"{name}.bias"]


def written(state: dict[str, Tensor], mel: Tensor, source: Tensor) -> Tensor:
    """The whole head from its state dict, for the tiny sizes of the golden file."""

    def block(name: str, x: Tensor) -> Tensor:
        for i in range(2):
            y = x
            for part, dilation in (("1", 2 * i + 1), ("2", 1)):
                alpha = state[f"{name}.activations{part}.{i}.alpha"][:, None]
                y = y + torch.sin(alpha * y) ** 2 / (alpha + 1e-9)
                weight, bias = normed(state, f"{name}.convs{part}.{i}")
                reach = dilation * (weight.shape[2] - 1) // 2
                y = F.conv1d(y, weight, bias, padding=reach, dilation=dilation)
            x = x + y
        return x

    spectrum = transform(source[0, 0])
    x = F.conv1d(mel, *normed(state, "conv_pre"), padding=3)
    for step, downs in enumerate(({"stride": 8, "padding": 4}, {})):
        x = torch.where(x > 0, x, 0.1 * x)
        x = F.conv_transpose1d(x, *normed(state, f"ups.{step}"), stride=8, padding=4)
        if step:
            x = torch.cat([x[:, :, 1:2], x], 2)
        name = f"source_downs.{step}"
        heard = F.conv1d(spectrum, state[f"{name}.weight"], state[f"{name}.bias"], **downs)
        x = x + block(f"source_resblocks.{step}", heard)
        x = (block(f"resblocks.{2 * step}", x) + block(f"resblocks.{2 * step + 1}", x)) / 2
    x = torch.where(x > 0, x, 0.01 * x)
    x = F.conv1d(x, *normed(state, "conv_post"), padding=3)
    magnitude, phase = x[0, :9].exp().clamp(max=100), x[0, 9:].sin()
    return inverse(magnitude * torch.exp(1j * phase)).clamp(-0.99, 0.99)[None]


def window() -> Tensor:
    return torch.tensor([0.5 - 0.5 * math.cos(2 * math.pi * n / 16) for n in range(16)])


def transform(samples: Tensor) -> Tensor:
    """Frames of 16 around every fourth sample, reflected at the ends: (1, 18, T / 4 + 1)."""
    padded = torch.cat([samples[1:9].flip(0), samples, samples[-9:-1].flip(0)])
    frames = [torch.fft.rfft(padded[t : t + 16] * window()) for t in range(0, len(samples) + 1, 4)]
    spectrum = torch.stack(frames, 1)
    return torch.cat([spectrum.real, spectrum.imag])[None]


def inverse(spectrum: Tensor) -> Tensor:
    count = spectrum.shape[1]
    out, energy = torch.zeros(4 * count + 12), torch.zeros(4 * count + 12)
    for f in range(count):
        out[4 * f : 4 * f + 16] += torch.fft.irfft(spectrum[:, f], 16) * window()
        energy[4 * f : 4 * f + 16] += window() ** 2
    return (out / energy.clamp(min=1e-11))[8 : 8 + 4 * (count - 1)]


@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_it_is_what_is_written(frames: int) -> None:
    head, mel = hift(), torch.randn(1, 10, frames)
    source = 0.1 * torch.randn(1, 1, 256 * frames)
    wanted = written(head.state_dict(), mel, source)
    assert wanted.std() > 0.02
    found = head.decode(mel, source)
    assert found.shape == (1, 256 * frames)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_items_of_a_batch_do_not_hear_each_other() -> None:
    head, mel, source = hift(), torch.randn(2, 10, 4), torch.randn(2, 1, 1024)
    together = head.decode(mel, source)
    for i in range(2):
        alone = head.decode(mel[i : i + 1], source[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_loud_sound_is_clamped() -> None:
    head = hift()
    head.conv_post.bias += 50
    found = head.decode(torch.randn(1, 10, 3), torch.randn(1, 1, 768))
    assert found.isfinite().all() and found.abs().max() == torch.tensor(CLAMP)


@torch.no_grad()
def test_the_whole_head_is_its_parts_and_a_seed() -> None:
    head, mel = hift(), torch.randn(2, 10, 4)

    def seed() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    wanted = head.decode(mel, head.m_source(head.f0(mel), seed()))
    assert torch.equal(head(mel, seed()), wanted)


def test_every_parameter_learns() -> None:
    head, mel = hift().train(), torch.randn(2, 10, 3)
    (head(mel).pow(2).sum() + head.f0(mel).sum()).backward()
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("mel", "source", "sentence"),
    [
        ((1, 9, 3), (1, 1, 768), r"a mel \(B, 10, F\) is needed, not \(1, 9, 3\)"),
        ((1, 10, 0), (1, 1, 0), r"is needed, not \(1, 10, 0\)"),
        ((10, 3), (1, 1, 768), r"is needed, not \(10, 3\)"),
        ((1, 10, 3), (1, 1, 767), r"the source has the shape \(1, 1, 767\), not \(1, 1, 768\)"),
        ((1, 10, 3), (1, 768), "the source has the shape"),
    ],
)
def test_other_shapes_are_one_sentence(
    mel: tuple[int, ...], source: tuple[int, ...], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        hift().decode(torch.zeros(mel), torch.zeros(source))


def test_nan_is_one_sentence() -> None:
    head, mel, source = hift(), torch.zeros(1, 10, 3), torch.zeros(1, 1, 768)
    with pytest.raises(UsageError, match="the mel holds NaN"):
        head.f0(mel * torch.nan)
    with pytest.raises(UsageError, match="the source holds NaN"):
        head.decode(mel, source / 0)


def test_steps_must_make_a_frame() -> None:
    with pytest.raises(UsageError, match="make 512 samples a frame, not 256"):
        Hift(rates=(16, 8))
    with pytest.raises(UsageError, match="as many source kernels"):
        Hift(source_kernels=(3,))


@torch.no_grad()
def test_saved_and_loaded_it_sounds_the_same(tmp_path: Path) -> None:
    head, mel, source = hift(), torch.randn(1, 10, 3), torch.randn(1, 1, 768)
    head.save(tmp_path)
    assert torch.equal(Hift.load(tmp_path).decode(mel, source), head.decode(mel, source))
