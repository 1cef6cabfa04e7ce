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


@torch.no_grad()
def best_alignment(log_probs: Tensor, labels: list[int]) -> list[int]:
    """Which of a clip's labels each step (S, P) most likely belongs to, as places in ``labels``.

    The path is the best of all that spell the labels (Viterbi); a blank belongs to the nearer of
    the labels around it. Empty where there are none, or the clip is too short to spell them.
    """
    if not labels:
        return []
    spelt = [0] + [x for label in labels for x in (label, 0)]
    scores = log_probs[:, spelt].double()
    states = torch.tensor(spelt)
    # From two states before one may come directly, but never past a blank that parts two the same.
    skips = torch.tensor([i > 1 and s != 0 and s != spelt[i - 2] for i, s in enumerate(spelt)])
    best = torch.full((len(spelt),), -torch.inf, dtype=torch.float64)
    best[:2] = scores[0, :2]
    came = []
    for row in scores[1:]:
        ways = torch.stack([best, _late(best, 1), _late(best, 2).masked_fill(~skips, -torch.inf)])
        best, way = ways.max(0)
        best = best + row
        came.append(way)
    last = len(spelt) - 1 - int(best[-2] > best[-1])
    if not bool(best[last].isfinite()):
        return []
    path = [last]
    for way in reversed(came):
        path.append(path[-1] - int(way[path[-1]]))
    return _filled(torch.tensor(path[::-1]), states)


def _late(x: Tensor, places: int) -> Tensor:
    return F.pad(x, (places, 0), value=-torch.inf)[: len(x)]


def _filled(path: Tensor, states: Tensor) -> list[int]:
    """Places in the labels of a path through the states (S,), blanks given to the nearer one."""
    spoken = (states[path] != 0).nonzero()[:, 0]
    steps = torch.arange(len(path))
    nearest = spoken[(steps[:, None] - spoken).abs().argmin(1)]
    found: list[int] = (path[nearest] // 2).tolist()
    return found
