"""Masked DPO against a loop, its gradient at masked places, its limits."""

from math import exp, log

import pytest
import torch
from torch import Tensor

from aqaa.losses.masked_dpo import answer_scores, masked_dpo


def test_scores_against_a_loop() -> None:
    log_probs = torch.randn(12)
    answer, keep = torch.tensor([0, 0, 2, 2, 2, 0, 1, 1, 3, 3, 0, 3]), torch.rand(12) > 0.4
    expected = [0.0] * 5
    for value, a, k in zip(log_probs.tolist(), answer.tolist(), keep.tolist(), strict=True):
        expected[a] += value if k else 0
    assert answer_scores(log_probs, answer, keep, 5).tolist() == pytest.approx(expected)


def test_the_loss_against_a_loop() -> None:
    scores = torch.randn(4, 6)
    out = masked_dpo(*scores, beta=0.3)
    margins = []
    for chosen, rejected, chosen_reference, rejected_reference in scores.T.tolist():
        margins.append(0.3 * ((chosen - chosen_reference) - (rejected - rejected_reference)))
    losses = [-log(1 / (1 + exp(-m))) for m in margins]
    assert float(out.loss) == pytest.approx(sum(losses) / 6, rel=1e-5)
    assert out.margin.tolist() == pytest.approx(margins, rel=1e-5)
    assert float(out.accuracy) == pytest.approx(sum(m > 0 for m in margins) / 6)


def _loss(log_probs: Tensor, keep: Tensor, beta: float = 0.5) -> Tensor:
    answer = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    scores = answer_scores(log_probs, answer, keep, 2)
    return masked_dpo(scores[:1], scores[1:], torch.zeros(1), torch.zeros(1), beta=beta).loss


@pytest.mark.parametrize("value", [-3.0, -1e4, float("-inf"), float("nan")])
def test_the_gradient_at_masked_places_is_exactly_zero(value: float) -> None:
    keep = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0])
    log_probs = -torch.rand(8)
    log_probs[keep == 0] = value
    log_probs.requires_grad_()
    _loss(log_probs, keep).backward()
    assert log_probs.grad is not None
    assert (log_probs.grad[keep == 0] == 0).all()
    assert (log_probs.grad[keep == 1] != 0).all()
    assert log_probs.grad.isfinite().all()


def test_masked_values_do_not_matter() -> None:
    keep, log_probs = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0]), -torch.rand(8)
    other = torch.where(keep.bool(), log_probs, -7.0)
    assert torch.equal(_loss(log_probs, keep), _loss(other, keep))


def test_with_everything_masked_nothing_is_learnt() -> None:
    log_probs = torch.randn(8, requires_grad=True)
    loss = _loss(log_probs, torch.zeros(8))
    loss.backward()
    assert loss.item() == pytest.approx(log(2))
    assert log_probs.grad is not None
    assert (log_probs.grad == 0).all()


def test_beta_limits() -> None:
    chosen, rejected = torch.tensor([-1.0, -5]), torch.tensor([-4.0, -2])
    zero = torch.zeros(2)
    assert float(masked_dpo(chosen, rejected, zero, zero, beta=0).loss) == pytest.approx(log(2))
    steep = masked_dpo(chosen, rejected, zero, zero, beta=1e4)
    # Right by a mile costs nothing, wrong by a mile costs the margin itself.
    assert float(steep.loss) == pytest.approx(3e4 / 2)
    assert steep.loss.isfinite()
    assert float(steep.accuracy) == 0.5


def test_at_the_reference_the_loss_is_log_two_and_pushes_apart() -> None:
    chosen = torch.tensor([-3.0], requires_grad=True)
    rejected = torch.tensor([-3.0], requires_grad=True)
    out = masked_dpo(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.2)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(log(2))
    assert chosen.grad is not None and rejected.grad is not None
    assert float(chosen.grad) == pytest.approx(-0.1)
    assert float(rejected.grad) == pytest.approx(0.1)
