"""Scores of a frozen reference, computed once for all pairs and kept beside them.

Letters: P pairs, K kinds of id.
The file says what its scores belong to, holds those that are done, and is always whole: a run that
was cut goes on from it. Scores are by kind of id, so that one file serves every mask.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.storage import save_tensors

_RECORD = "made_of"


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
