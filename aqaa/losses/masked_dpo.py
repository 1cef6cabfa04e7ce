"""Direct preference optimisation with kinds of ids masked out (paper section 3.3, Eq. 2).

Letters: B pairs, N target positions, K kinds of id, as many as in ``aqaa.vocabulary.TOKEN_TYPES``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from aqaa.errors import UsageError

# The kinds each mask leaves out; ``audio`` is the paper's, and takes the markers for audio.
MASKS: dict[str, tuple[str, ...]] = {
    "audio": ("linguistic", "semantic", "marker"),
    "none": (),
    "text": ("text",),
    "linguistic": ("linguistic",),
    "semantic": ("semantic",),
}


def kept_kinds(mask: str, kinds: Sequence[str]) -> list[bool]:
    """Whether each of ``kinds`` (K,) counts under a mask: the indicator of Eq. 2."""
    if mask not in MASKS:
        raise UsageError(f"mask={mask} is not one of {', '.join(MASKS)}")
    return [kind not in MASKS[mask] for kind in kinds]


@dataclass(frozen=True)
class DpoLoss:
    """``loss`` scalar; the rest detached.

    ``margin`` (B,) of implied rewards, ``margins`` (B, K) its parts by kind, masked ones too,
    ``accuracy`` the share of positive margins.
    """

    loss: Tensor
    margin: Tensor
    margins: Tensor
    accuracy: Tensor


def answer_scores(
    log_probs: Tensor, answer: Tensor, kind: Tensor, *, answers: int, kinds: int
) -> Tensor:
    """Sum of the log-probabilities of each answer, by kind of id.

    Args:
        log_probs: (N,) of target positions, in any order.
        answer: (N,) index of the answer a position belongs to.
        kind: (N,) index of the kind of its id.
        answers: how many answers there are.
        kinds: K.

    Returns:
        (answers, K).
    """
    sums = log_probs.new_zeros(answers * kinds).index_add(0, answer * kinds + kind, log_probs)
    return sums.view(answers, kinds)


def masked_dpo(
    chosen: Tensor,
    rejected: Tensor,
    chosen_reference: Tensor,
    rejected_reference: Tensor,
    *,
    beta: float,
    keep: Sequence[bool],
) -> DpoLoss:
    """-log sigmoid(beta * ((chosen - chosen_ref) - (rejected - rejected_ref))), mean over pairs.

    Scores are (B, K) as :func:`answer_scores` gives them, ``keep`` (K,) as :func:`kept_kinds`. What
    is masked is left out rather than multiplied by zero, so that it gives a gradient of exactly
    zero even where it is not finite.
    """
    # Differences before sums over kinds: scores are large, and what is left of them is small.
    apart = (chosen - chosen_reference) - (rejected - rejected_reference)
    margin, margins = beta * _kept(apart, keep), beta * apart
    accuracy = (margin > 0).float().mean()
    return DpoLoss(-F.logsigmoid(margin).mean(), margin.detach(), margins.detach(), accuracy)


def _kept(scores: Tensor, keep: Sequence[bool]) -> Tensor:
    """Sums (B,) of the columns that count."""
    columns = [column for column, kept in zip(scores.unbind(1), keep, strict=True) if kept]
    return torch.stack([scores[:, :0].sum(1), *columns]).sum(0)


def preference_sums(
    found: DpoLoss, sizes: Tensor, alike: Tensor, keep: Sequence[bool]
) -> dict[str, Tensor]:
    """Sums over pairs that tell where a preference comes from; see :func:`preference_figures`.

    Args:
        found: margins of all kinds.
        sizes: (2B, K) ids of each answer by kind, those of the chosen answers first.
        alike: (B, K) 1 where both answers have the same ids of a kind.
        keep: (K,) the kinds that count.
    """
    chosen, rejected = sizes.chunk(2)
    longer = _kept(chosen, keep) - _kept(rejected, keep)
    differs = _kept(1 - alike, keep)
    return {
        "pairs": torch.ones_like(found.margin).sum(),
        "margins": found.margins.sum(0),
        "longer": (chosen - rejected).sum(0),
        "alike": alike.sum(0),
        "ties": (differs == 0).float().sum(),
        "unequal": (longer != 0).float().sum(),
        "longer_preferred": (longer * found.margin > 0).float().sum(),
    }


def preference_figures(sums: dict[str, Tensor], kinds: Sequence[str]) -> dict[str, Tensor]:
    """What a log shows of :func:`preference_sums`.

    Of each of ``kinds`` the margin, how many more ids the chosen answers have, and the share of
    pairs whose answers have the same ids. ``ties`` is that share of all that counts: such a pair
    teaches nothing about it. ``length_bias`` is, of the pairs whose answers differ in length, the
    share whose longer answer is preferred: 0.5 knows no length.
    """
    out = {}
    for place, kind in enumerate(kinds):
        out[f"{kind}_margin"] = sums["margins"][place] / sums["pairs"]
        out[f"{kind}_longer_tokens"] = sums["longer"][place] / sums["pairs"]
        out[f"{kind}_ties"] = sums["alike"][place] / sums["pairs"]
    unequal = sums["unequal"]
    bias = torch.where(unequal > 0, sums["longer_preferred"] / unequal.clamp(min=1), 0.5)
    return {**out, "ties": sums["ties"] / sums["pairs"], "length_bias": bias}
