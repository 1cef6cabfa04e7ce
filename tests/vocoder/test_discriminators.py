"""Judges see the pictures they are said to see, and can learn to tell sounds apart."""

import math

import pytest
import torch
from torch.nn import functional as F

from aqaa.errors import UsageError
from aqaa.losses.adversarial import discriminator_loss
from aqaa.vocoder.discriminators import PERIODS, Discriminators, fold, spectrogram


def judges() -> Discriminators:
    torch.manual_seed(0)
    return Discriminators(
        periods=(2, 3), period_channels=(4, 6), resolutions=[(64, 16, 48), (32, 8, 32)],
        resolution_channels=(4, 4, 4),
    )  # fmt: skip


@pytest.mark.parametrize("period", PERIODS)
def test_folding_against_a_loop(period: int) -> None:
    sound = torch.randn(2, 40)
    found = fold(sound, period)
    rows = -(-40 // period)
    assert found.shape == (2, 1, rows, period)
    for t in range(rows * period):
        source = t if t < 40 else 2 * 39 - t
        assert torch.equal(found[:, 0, t // period, t % period], sound[:, source])


def test_spectrogram_by_sums() -> None:
    sound = torch.randn(1, 90, dtype=torch.float64).float()
    found = spectrogram(sound, (32, 8, 20))
    assert found.shape == (1, 1, 90 // 8 + 1, 17)
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / 20) for n in range(20)]
    for frame in (0, 5, 11):
        for k in (0, 3, 16):
            re = im = 0.0
            for n in range(20):  # the window stands in the middle of the FFT
                place = 8 * frame - 16 + 6 + n
                place = -place if place < 0 else 2 * 89 - place if place > 89 else place
                angle = 2 * math.pi * k * (n + 6) / 32
                re += hann[n] * float(sound[0, place]) * math.cos(angle)
                im -= hann[n] * float(sound[0, place]) * math.sin(angle)
            assert float(found[0, 0, frame, k]) == pytest.approx(math.hypot(re, im), abs=1e-4)


@torch.no_grad()
def test_a_judge_is_its_layers() -> None:
    made, sound = judges(), torch.randn(2, 100)
    verdicts = made(sound)
    assert len(verdicts) == 4
    x = fold(sound, 3)
    judge = made.by_period[1]
    for layer, stride in zip(judge.layers, ((3, 1), (1, 1)), strict=True):
        x = F.conv2d(x, layer.weight, layer.bias, stride, (2, 0))
        x = torch.where(x > 0, x, 0.1 * x)
    x = F.conv2d(x, judge.score.weight, judge.score.bias, 1, (1, 0))
    torch.testing.assert_close(verdicts[1].score, x.flatten(1), rtol=0, atol=1e-5)
    assert torch.equal(verdicts[1].features[-1].flatten(1), verdicts[1].score)
    assert [f.shape[1] for f in verdicts[1].features] == [4, 6, 1]
    columns = [f.shape[3] for f in verdicts[2].features]
    assert columns == [33, 17, 17, 17]  # only the layer in the middle takes every second


def test_full_size() -> None:
    with torch.device("meta"):
        full = Discriminators()
    assert len(full.by_period) == 5 and len(full.by_resolution) == 3
    assert full.least_samples == 1025
    widths = [layer.weight.shape[0] for layer in full.by_period[0].layers]
    assert widths == [32, 128, 512, 1024, 1024]
    sizes = [tuple(layer.weight.shape[2:]) for layer in full.by_resolution[0].layers]
    assert sizes == [(3, 9)] * 4 + [(3, 3)]


def test_they_learn_to_tell_a_tone_from_noise() -> None:
    made, generator = judges(), torch.Generator().manual_seed(0)
    tone = torch.sin(torch.arange(100) * 0.3).expand(4, 100)
    optimizer = torch.optim.Adam(made.parameters(), 5e-3)
    losses = []
    for _ in range(25):
        noise = torch.randn(4, 100, generator=generator)
        real, fake = made(tone), made(noise)
        loss = discriminator_loss([v.score for v in real], [v.score for v in fake])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("shape", [(100,), (1, 1, 100), (2, 32), (2, 0)])
def test_clips_too_short_are_one_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"judges need clips \(B, T\) of 33 samples"):
        judges()(torch.zeros(shape))
    judges()(torch.zeros(1, 33))
