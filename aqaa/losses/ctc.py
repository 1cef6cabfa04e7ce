"""Connectionist temporal classification, summed over a batch and divided by its targets.

Letters: B clips, S CTC steps, P labels with blank 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def ctc(log_probs: Tensor, steps: Tensor, targets: list[list[int]]) -> Tensor:
    """CTC loss per target label.

    Args:
        log_probs: (B, S, P), normalised over P.
        steps: (B,) valid steps of each clip.
        targets: label ids of each clip, without blanks.

    Returns:
        Scalar: the summed negative log likelihood over the number of labels. A clip too short for
        its labels counts zero, and so does a batch without clips.
    """
    if not targets:
        return log_probs.sum()
    lengths = torch.tensor([len(t) for t in targets])
    flat = torch.tensor([label for t in targets for label in t], dtype=torch.long)
    total = F.ctc_loss(
        log_probs.transpose(0, 1),
        flat.to(log_probs.device),
        steps.long(),
        lengths,
        reduction="sum",
        zero_infinity=True,
    )
    return total / max(1, int(lengths.sum()))


def greedy_labels(log_probs: Tensor, steps: int) -> list[int]:
    """Best path of one clip (S, P): repeats merged, blanks dropped."""
    best = log_probs[:steps].argmax(-1).tolist()
    return [p for i, p in enumerate(best) if p and (i == 0 or best[i - 1] != p)]
