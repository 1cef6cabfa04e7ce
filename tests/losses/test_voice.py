"""What a code must tell besides words, against loops and at the limits."""

import math

import pytest
import torch

from aqaa.losses.voice import emotion_loss, level_distance, pitch_distance

MASK = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0]])
F0 = torch.tensor([[100.0, 0, 220, 90], [0, 150, 300, 0]])


def test_pitch_against_a_loop() -> None:
    voiced, octaves = torch.randn(2, 4), torch.randn(2, 4)
    crosses, errors = [], []
    for b in range(2):
        for n in range(4):
            if not MASK[b, n]:
                continue
            p = 1 / (1 + math.exp(-float(voiced[b, n])))
            crosses.append(-math.log(p if F0[b, n] > 0 else 1 - p))
            if F0[b, n] > 0:
                errors.append(abs(float(octaves[b, n]) - math.log2(float(F0[b, n]) / 150)))
    expected = sum(crosses) / len(crosses) + sum(errors) / len(errors)
    assert float(pitch_distance(voiced, octaves, F0, MASK)) == pytest.approx(expected, abs=1e-3)


def test_nothing_voiced_leaves_the_voicing() -> None:
    found = pitch_distance(torch.zeros(2, 4), torch.randn(2, 4), torch.zeros(2, 4), MASK)
    assert float(found) == pytest.approx(math.log(2))


def test_what_is_padded_has_no_gradient() -> None:
    voiced, octaves, level = (torch.randn(2, 4, requires_grad=True) for _ in range(3))
    loss = pitch_distance(voiced, octaves, F0, MASK) + level_distance(level, F0 / 100, MASK)
    loss.backward()
    for tensor in (voiced, octaves, level):
        assert tensor.grad is not None
        assert bool((tensor.grad[MASK == 0] == 0).all())
    assert bool((level.grad[MASK == 1] != 0).all())  # type: ignore[index]


def test_level_against_a_loop() -> None:
    a, b = torch.randn(2, 4), torch.randn(2, 4)
    parts = [abs(float(a[i, n] - b[i, n])) for i in range(2) for n in range(4) if MASK[i, n]]
    assert float(level_distance(a, b, MASK)) == pytest.approx(sum(parts) / len(parts))


def test_emotions_that_are_not_known_teach_nothing() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    loss = emotion_loss(logits, torch.tensor([2, -1, 0]))
    scores = logits.detach().log_softmax(-1)
    assert float(loss) == pytest.approx(-(float(scores[0, 2]) + float(scores[2, 0])) / 2)
    loss.backward()
    assert logits.grad is not None and bool((logits.grad[1] == 0).all())
    assert float(emotion_loss(torch.randn(2, 4), torch.tensor([-1, -1]))) == 0.0
