"""Scores of a frozen reference, made once for all pairs by all ranks and kept beside them.

Letters: P pairs, K kinds of id, n pairs of a batch.
The file says what its scores belong to, holds those that are done, and is always whole: a run that
was cut goes on from it. Scores are by kind of id, so that one file serves every mask.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.progress import Bar
from aqaa.ranks import from_first, rank, ranks, total
from aqaa.storage import save_tensors

_RECORD = "made_of"
BATCH_PAIRS = 8
_SAVES, _FEWEST_TURNS = 50, 16  # a cut loses a fiftieth of the work, or so many batches of a rank


@dataclass(frozen=True)
class Scores:
    """``scores`` (P, 2, K) of chosen and rejected answers; ``done`` (P,) is 1 where they are known.

    Read from a file they are mapped into memory, not held in it.
    """

    scores: Tensor
    done: Tensor

    @classmethod
    def none(cls, pairs: int, kinds: int) -> "Scores":
        """Nothing is known yet."""
        return cls(torch.zeros(pairs, 2, kinds), torch.zeros(pairs, dtype=torch.uint8))

    @property
    def left(self) -> list[int]:
        """The pairs that are not known."""
        return (self.done == 0).nonzero()[:, 0].tolist()

    def with_these(self, pairs: list[int], scores: Tensor) -> "Scores":
        """With the scores (n, 2, K) of n further pairs."""
        at = torch.tensor(pairs)
        # Out of place: what is mapped from a file is not written to.
        done = self.done.index_fill(0, at, 1)
        return replace(self, scores=self.scores.index_copy(0, at, scores), done=done)


def scores_beside(pairs: Path, made_of: Mapping[str, str]) -> Path:
    """The file that keeps scores beside the folder of pairs, under the hash of what they are of."""
    digest = hashlib.sha256(json.dumps(dict(made_of), sort_keys=True).encode()).hexdigest()
    return pairs.with_name(f"{pairs.name}.scores") / f"{digest[:16]}.safetensors"


def read_scores(path: Path, made_of: Mapping[str, str]) -> Scores | None:
    """What a file keeps; None where there is none.

    Args:
        path: of the file.
        made_of: names and hashes of the reference model, the pairs and how they are read.

    Raises:
        UsageError: it is damaged, or its scores belong to something else.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})[_RECORD])
            found = Scores(file.get_tensor("scores"), file.get_tensor("done"))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UsageError(f"{path} holds no reference scores: {error}; remove it") from None
    for name, wanted in made_of.items():
        if record.get(name) != wanted:
            raise UsageError(
                f"the reference scores in {path} are stale: they were made with {name} "
                f"{str(record.get(name))[:16]}, this run has {wanted[:16]}; remove the file or "
                f"give stage.scores another"
            )
    return found


def keep_scores(path: Path, made_of: Mapping[str, str], found: Scores) -> None:
    """Write what is known so far, whole or not at all."""
    tensors = {"scores": found.scores, "done": found.done}
    save_tensors(path, tensors, {_RECORD: json.dumps(dict(made_of), sort_keys=True)})


def reference_scores(
    score: Callable[[list[int]], Tensor],
    path: Path,
    made_of: Mapping[str, str],
    *,
    pairs: int,
    kinds: int,
    device: torch.device,
) -> Tensor:
    """Scores (P, 2, K) of the reference, from the file that keeps them or made now.

    Args:
        score: gives those of n pairs, (n, 2, K); all ranks call it equally often, for its weights
            may be sharded.
        path: of the file.
        made_of: what the scores belong to.
        pairs: P.
        kinds: K.
        device: where the ranks can talk.

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
    if int(total(torch.tensor(int(whole), device=device))) == ranks():
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
