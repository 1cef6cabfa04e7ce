"""Pitch and harmonics against loops over layers and samples."""

import math

import pytest
import torch
from torch.nn import functional as F

from aqaa.signals import VOCODER_RATE_HZ
from aqaa.vocoder.source import (
    SINE_AMPLITUDE,
    VOICED_NOISE,
    HarmonicSource,
    NormedConv,
    PitchPredictor,
)
from tests.golden.make import randomise

HOP = 64


def source() -> HarmonicSource:
    return randomise(HarmonicSource(harmonics=2, hop_samples=HOP))


@pytest.mark.parametrize("transposed", [False, True])
@torch.no_grad()
def test_the_weight_has_the_length_it_is_said_to_have(transposed: bool) -> None:
    options = {"stride": 2, "padding": 1, "transposed": transposed}
    layer = randomise(NormedConv(3, 5, 4, **options))
    weight = torch.empty_like(layer.weight_v)
    for row in range(len(weight)):
        length = math.sqrt(float((layer.weight_v[row] ** 2).sum()))
        weight[row] = layer.weight_v[row] * float(layer.weight_g[row]) / length
    x = torch.randn(1, 3, 10)
    how = F.conv_transpose1d if transposed else F.conv1d
    wanted = how(x, weight, layer.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_new_convolution_is_its_direction() -> None:
    layer, x = NormedConv(3, 5, 3, padding=1, dilation=1), torch.randn(1, 3, 6)
    wanted = F.conv1d(x, layer.weight_v, padding=1)
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-6)


@torch.no_grad()
def test_pitch_against_its_formula() -> None:
    net, mel = randomise(PitchPredictor(mel_bins=4, channels=6, layers=2)), torch.randn(2, 4, 9)
    h = mel
    for layer in (net.condnet[0], net.condnet[2]):
        h = layer(h)
        h = torch.where(h > 0, h, h.exp() - 1)
    wanted = (h.mT @ net.classifier.weight[0] + net.classifier.bias).abs()
    assert wanted.shape == (2, 9)
    torch.testing.assert_close(net(mel), wanted, rtol=0, atol=1e-5)


def test_sines_against_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    net, f0 = source(), torch.tensor([[200.0, 0.0, 330.0]])
    start = torch.tensor([0.0, 0.25, 0.6])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: start.expand(1, 1, 3).clone())
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.ones(shape))
    found, turns = net.sines(f0), 0.0
    assert found.shape == (1, 3 * HOP, 3)
    for t in range(3 * HOP):
        pitch = float(f0[0, t // HOP])
        turns += pitch / VOCODER_RATE_HZ
        for k in range(3):
            wave = SINE_AMPLITUDE * math.sin(2 * math.pi * ((k + 1) * turns + float(start[k])))
            wanted = wave + VOICED_NOISE if pitch > 10 else SINE_AMPLITUDE / 3
            assert float(found[0, t, k]) == pytest.approx(wanted, abs=1e-5)


def test_a_long_tone_stays_in_tune() -> None:
    seconds, pitch = 60, 441.0  # 50 samples a turn
    f0 = torch.full((1, seconds * VOCODER_RATE_HZ // HOP), pitch)
    last = source().sines(f0)[0, -50:, 0]
    count = f0.shape[1] * HOP
    wanted = [math.sin(2 * math.pi * (t / 50 % 1)) for t in range(count - 49, count + 1)]
    assert (last / SINE_AMPLITUDE - torch.tensor(wanted)).abs().max() < 6 * VOICED_NOISE * 10


@torch.no_grad()
def test_the_mix_and_its_seed() -> None:
    net, f0 = source(), torch.tensor([[200.0, 0.0, 330.0], [90.0, 100.0, 0.0]])

    def seed(number: int) -> torch.Generator:
        return torch.Generator().manual_seed(number)

    waves = net.sines(f0, seed(1))
    wanted = torch.tanh(waves @ net.l_linear.weight[0] + net.l_linear.bias)[:, None]
    torch.testing.assert_close(net(f0, seed(1)), wanted, rtol=0, atol=1e-6)
    assert not torch.equal(net(f0, seed(1)), net(f0, seed(2)))
