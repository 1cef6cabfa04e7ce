"""Adversarial losses against loops, and at their limits."""

import pytest
import torch
from torch import Tensor

from aqaa.losses.adversarial import (
    discriminator_loss,
    feature_matching,
    generator_loss,
    mel_distance,
)


def scores() -> tuple[list[Tensor], list[Tensor]]:
    shapes = ((2, 5), (2, 3), (2, 1))
    return [torch.randn(s) for s in shapes], [torch.randn(s) for s in shapes]


def test_scores_against_a_loop() -> None:
    real, made = scores()
    against, for_it = 0.0, 0.0
    for r, m in zip(real, made, strict=True):
        count = r.numel()
        for a, b in zip(r.flatten().tolist(), m.flatten().tolist(), strict=True):
            against += ((1 - a) ** 2 + b**2) / count
            for_it += (1 - b) ** 2 / count
    assert float(discriminator_loss(real, made)) == pytest.approx(against, rel=1e-5)
    assert float(generator_loss(made)) == pytest.approx(for_it, rel=1e-5)


def test_the_ends() -> None:
    ones, zeros = [torch.ones(2, 3)] * 2, [torch.zeros(2, 3)] * 2
    assert float(discriminator_loss(ones, zeros)) == 0
    assert float(discriminator_loss(zeros, ones)) == 4
    assert float(generator_loss(ones)) == 0 and float(generator_loss(zeros)) == 2


def test_features_against_a_loop() -> None:
    real = [[torch.randn(2, 3, 4), torch.randn(2, 1, 2)], [torch.randn(2, 5)]]
    made = [[torch.randn_like(layer) for layer in judge] for judge in real]
    wanted = 0.0
    for j, judge in enumerate(real):
        for i, layer in enumerate(judge):
            pairs = zip(layer.flatten().tolist(), made[j][i].flatten().tolist(), strict=True)
            wanted += sum(abs(a - b) for a, b in pairs) / layer.numel()
    assert float(feature_matching(real, made)) == pytest.approx(wanted, rel=1e-5)
    assert float(feature_matching(real, real)) == 0


def test_real_features_do_not_learn() -> None:
    real, made = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    feature_matching([[real]], [[made]]).backward()
    assert real.grad is None and made.grad is not None and made.grad.any()


def test_judges_must_be_the_same() -> None:
    real, made = scores()
    with pytest.raises(ValueError):
        discriminator_loss(real, made[:2])
    with pytest.raises(ValueError):
        feature_matching([real], [made[:2]])


def test_mels_against_a_loop() -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    pairs = list(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    wanted = sum(abs(x - y) for x, y in pairs) / len(pairs)
    assert float(mel_distance(a, b)) == pytest.approx(wanted, rel=1e-5)
