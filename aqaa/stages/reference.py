"""Scoring all pairs with the reference: once, by all ranks together, and on from where it was cut.

Letters: P pairs, K kinds of id, n pairs of a batch.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from aqaa.data.scores import Scores, keep_scores, read_scores
from aqaa.errors import UsageError
from aqaa.progress import Bar
from aqaa.ranks import from_first, rank, ranks, total

BATCH_PAIRS = 8
_SAVES, _FEWEST_TURNS = 50, 16  # a cut loses a fiftieth of the work, or so many batches of a rank


def reference_scores(
    score: Callable[[list[int]], Tensor],
    path: Path,
    made_of: Mapping[str, str],
    *,
    pairs: int,
    kinds: int,
) -> Tensor:
    """Scores (P, 2, K) of the reference, from the file that keeps them or made now.

    Args:
        score: gives those of n pairs, (n, 2, K); all ranks call it equally often, for its weights
            may be sharded.
        path: of the file.
        made_of: what the scores belong to.
        pairs: P.
        kinds: K.

    Raises:
        UsageError: the file is damaged or its scores belong to something else; every rank's.
    """
    found, trouble = None, ""
    try:
        found = read_scores(path, made_of)
    except UsageError as error:
        trouble = str(error)
    if trouble := from_first(trouble):  # or the others would wait for the one that stops
        raise UsageError(trouble)
    whole = found is not None and not found.left
    if int(total(torch.tensor(int(whole)))) == ranks():
        assert found is not None
        return found.scores  # mapped, on every rank
    known: Scores = from_first(found or Scores.none(pairs, kinds))
    return _completed(known, score, path, made_of)


@torch.no_grad()
def _completed(
    known: Scores, score: Callable[[list[int]], Tensor], path: Path, made_of: Mapping[str, str]
) -> Tensor:
    """Score what is left, each rank its share of every stretch, and keep it stretch by stretch."""
    left, all_of_them = known.left, len(known.done)
    turns = max(_FEWEST_TURNS, math.ceil(len(left) / BATCH_PAIRS / ranks() / _SAVES))
    stretch = BATCH_PAIRS * turns * ranks()
    with Bar("reference", all_of_them, unit="pairs", begun=all_of_them - len(left)) as bar:
        for begin in range(0, len(left), stretch):
            these = left[begin : begin + stretch]
            known = known.with_these(these, _shared(these, score))
            if rank() == 0:
                keep_scores(path, made_of, known)
                bar.update(all_of_them - len(known.left))
    return known.scores


def _shared(pairs: list[int], score: Callable[[list[int]], Tensor]) -> Tensor:
    """Scores of some pairs (n, 2, K) on the host; ranks take turns, all equally often."""
    begins = list(range(0, len(pairs), BATCH_PAIRS))
    sums: Tensor | None = None
    for turn in range(math.ceil(len(begins) / ranks())):
        begin = begins[(turn * ranks() + rank()) % len(begins)]
        here = slice(begin, begin + BATCH_PAIRS)
        found = score(pairs[here])
        if sums is None:  # the last column counts who scored a pair
            sums = found.new_zeros(len(pairs), found[0].numel() + 1)
        sums[here, :-1] += found.flatten(1)
        sums[here, -1] += 1
    assert sums is not None
    sums = total(sums).cpu()
    return (sums[:, :-1] / sums[:, -1:]).unflatten(1, (2, -1))
