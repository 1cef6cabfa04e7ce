"""Direct preference optimisation with the audio ids masked out (paper section 3.3, Eq. 2).

Letters: B pairs, N target positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class DpoLoss:
    """``loss`` scalar, ``margin`` (B,) of implied rewards, ``accuracy`` share of positive ones."""

    loss: Tensor
    margin: Tensor
    accuracy: Tensor


def answer_scores(log_probs: Tensor, answer: Tensor, keep: Tensor, answers: int) -> Tensor:
    """Sum of the kept log-probabilities of each answer.

    Args:
        log_probs: (N,) of all target positions of all answers.
        answer: (N,) index of the answer a position belongs to.
        keep: (N,) 1 where the id is no audio id and no marker (the indicator of Eq. 2).
        answers: how many answers there are.

    Returns:
        (answers,). ``torch.where`` rather than a product, so that masked positions give a
        gradient of exactly zero even where a log-probability is not finite.
    """
    kept = torch.where(keep.bool(), log_probs, log_probs.new_zeros(()))
    return log_probs.new_zeros(answers).index_add(0, answer, kept)


def masked_dpo(
    chosen: Tensor,
    rejected: Tensor,
    chosen_reference: Tensor,
    rejected_reference: Tensor,
    *,
    beta: float,
) -> DpoLoss:
    """-log sigmoid(beta * ((chosen - chosen_ref) - (rejected - rejected_ref))), mean over pairs.

    All tensors are (B,), sums over kept positions as :func:`answer_scores` gives them.
    """
    margin = beta * ((chosen - chosen_reference) - (rejected - rejected_reference))
    return DpoLoss(-F.logsigmoid(margin).mean(), margin.detach(), (margin > 0).float().mean())
