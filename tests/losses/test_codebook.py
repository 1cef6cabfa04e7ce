"""Tokenizer losses against loops."""

import pytest
import torch

from aqaa.losses.codebook import commitment, mel_distance

MASK = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0]])


def test_commitment_against_a_loop() -> None:
    z, chosen = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    terms = []
    for b in range(2):
        for n in range(4):
            if MASK[b, n]:
                terms.append(sum((z[b, n, d] - chosen[b, n, d]) ** 2 for d in range(3)) / 3)
    expected = sum(terms) / len(terms)
    torch.testing.assert_close(commitment(z, chosen, MASK), expected)
    assert commitment(z, z, MASK) == 0


def test_commitment_moves_the_encoder_alone() -> None:
    z, chosen = torch.randn(2, 4, 3, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True)
    commitment(z, chosen, MASK).backward()
    assert chosen.grad is None
    assert z.grad is not None
    torch.testing.assert_close(z.grad, 2 * (z - chosen).detach() * MASK[..., None] / 3 / 4)


def test_mel_distance_against_a_loop() -> None:
    mel, target = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    terms = [
        abs(float(mel[b, c, f] - target[b, c, f]))
        for b in range(2)
        for c in range(5)
        for f in range(4)
        if MASK[b, f]
    ]
    assert float(mel_distance(mel, target, MASK)) == pytest.approx(sum(terms) / len(terms))
    mel[0, :, 3] = 1e9  # padding
    assert float(mel_distance(mel, target, MASK)) == pytest.approx(sum(terms) / len(terms))
