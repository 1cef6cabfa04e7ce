"""Preference pairs as batches.

Letters: B pairs (2B answers), R rows, T ids, N ids to learn, K kinds of id (``TOKEN_TYPES``).
"""

import random
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aqaa.backbone.loading import Ids
from aqaa.data.manifest import read_manifest
from aqaa.errors import UsageError
from aqaa.losses.masked_dpo import kept_kinds
from aqaa.signals import CodePair, Role, Turn
from aqaa.storage import sha256_file
from aqaa.stream import Stream
from aqaa.vocabulary import TOKEN_TYPES

_SIDES = ("chosen", "rejected")


class PreferenceBatch(NamedTuple):
    """Answers 0..B-1 are chosen, B..2B-1 rejected, of ``pairs`` (B,).

    ``input_ids`` (R, T): a row for each pair, which holds its prompt once and both answers after
    it, or a row for each answer. ``forks`` (B, 2) says where in a pair's row each answer begins;
    None where a row is one answer.
    ``at`` (2, N) is the row and place of the state that chooses each id to learn; ``targets``,
    ``slots``, ``answers`` and ``kinds`` (N,) are that id, its slot, answer and kind. The first
    ``counted`` of them are in the preference, the others masked out of it.
    ``alike`` (B, K) is 1 where both answers have the same ids of a kind.
    """

    pairs: list[int]
    input_ids: Tensor
    forks: Tensor | None
    at: Tensor
    targets: Tensor
    slots: Tensor
    answers: Tensor
    kinds: Tensor
    counted: int
    alike: Tensor


class PreferenceBatches:
    """Pairs of answers to one question; a batch is a pure function of (seed, step).

    Args:
        pairs: folder of `aqaa data pairs`.
        batch: pairs a step.
        mask: what is left out of the preference: ``audio`` (paper; the markers too, ``<text_end>``
            among them), ``none``, ``text``, ``linguistic`` or ``semantic``. ``<|EOT|>`` is text.
        shared_prompt: a pair is one row with the prompt once, rather than two rows.
        seed: decides the order.
    """

    def __init__(
        self,
        *,
        pairs: str,
        batch: int = 8,
        mask: str = "audio",
        shared_prompt: bool = True,
        seed: int = 0,
    ) -> None:
        self.keep = kept_kinds(mask, TOKEN_TYPES)
        self.folder = Path(pairs)
        self._file = self.folder / "pairs.jsonl"
        self.rows = read_manifest(self._file)
        if not self.rows:
            raise UsageError(f"{self._file} holds no pair")
        for row in self.rows:
            for side in _SIDES:
                answers(row, side)
        self._batch = min(batch, len(self.rows))
        self.shared_prompt = shared_prompt
        self._seed = seed
        self._ids: Ids | None = None

    @property
    def hash(self) -> str:
        """SHA-256 of the pairs."""
        return sha256_file(self._file)

    def bind(self, ids: Ids) -> None:
        """Use the ids of the backbone that is trained."""
        made_with = {(row.get("meta") or {}).get("tokenizer_hash") for row in self.rows}
        wrong = made_with - {ids.tokenizer_hash}
        if wrong:
            raise UsageError(
                f"the pairs were made with tokenizers {wrong.pop()}, the backbone with "
                f"{ids.tokenizer_hash}: codes of two tokenizers are not interchangeable"
            )
        self._ids = ids

    def batch(self, step: int) -> PreferenceBatch:
        """Training batch number ``step``."""
        epoch_steps = len(self.rows) // self._batch
        epoch, place = divmod(step, epoch_steps)
        order = list(range(len(self.rows)))
        random.Random(f"{self._seed}:{epoch}").shuffle(order)
        return self.collate(order[place * self._batch : (place + 1) * self._batch])

    def validation(self) -> list[PreferenceBatch]:
        """None: pairs are few; the figures come from answering held-out questions."""
        return []

    def collate(self, pairs: list[int]) -> PreferenceBatch:
        """The batch of the given pairs."""
        assert self._ids is not None, "bind() comes before the first batch"
        streams = [self._stream(self.rows[i], side) for side in _SIDES for i in pairs]
        return collated(pairs, streams, self._ids, self.keep, shared_prompt=self.shared_prompt)

    def _stream(self, row: dict[str, Any], side: str) -> Stream:
        assert self._ids is not None
        dialogue = [turn(m) for m in row["prompt"]]
        dialogue += [turn(m, loss=True) for m in answers(row, side)]
        return self._ids.layout.encode(dialogue, self._ids.text, self._ids.vocabulary)


def collated(
    pairs: list[int], streams: list[Stream], ids: Ids, keep: list[bool], *, shared_prompt: bool
) -> PreferenceBatch:
    """The batch of 2B streams, those of the chosen answers first.

    Args:
        pairs: (B,) their numbers.
        streams: of the answers, each with its prompt.
        ids: what the ids mean.
        keep: (K,) the kinds that count.
        shared_prompt: a row for each pair.
    """
    count = len(pairs)
    forks = [_fork(*both) for both in zip(streams[:count], streams[count:], strict=True)]
    rows: list[list[int]] = []
    found = []
    for answer, stream in enumerate(streams):
        prompt, second = forks[answer % count]
        places = np.flatnonzero(stream.slots[1:])  # the state before an id chooses it
        row, read = answer, stream.ids[:-1]
        if shared_prompt and answer >= count:
            row, read = answer - count, []
            rows[row] += stream.ids[prompt:-1]
            places = np.where(places < prompt, places, places - prompt + second)
        if read:
            rows.append(read)
        learnt = np.flatnonzero(stream.slots[1:]) + 1
        targets, slots = (np.array(of)[learnt] for of in (stream.ids, stream.slots))
        of_one = np.stack([np.full_like(places, row), places, targets, slots])
        found.append(np.concatenate([of_one, np.full((1, len(places)), answer)]))
    inputs = torch.full((len(rows), max(map(len, rows))), ids.vocabulary.pad)
    for at, row_ids in enumerate(rows):
        inputs[at, : len(row_ids)] = torch.tensor(row_ids)
    columns = np.concatenate(found, 1)
    kinds = _kinds(columns[2], ids)
    counts = np.array(keep)[kinds]
    order = np.argsort(~counts, kind="stable")
    columns, kinds = columns[:, order], kinds[order]
    tensors = torch.from_numpy(columns)
    return PreferenceBatch(
        pairs=pairs,
        input_ids=inputs,
        forks=torch.tensor(forks) if shared_prompt else None,
        at=tensors[:2],
        targets=tensors[2],
        slots=tensors[3],
        answers=tensors[4],
        kinds=torch.from_numpy(kinds),
        counted=int(counts.sum()),
        alike=torch.tensor(_alike(columns[2], columns[4], kinds, count), dtype=torch.float32),
    )


def _fork(chosen: Stream, rejected: Stream) -> tuple[int, int]:
    """Where the first and the second answer begin in the row of a pair."""
    both = zip(chosen.ids, rejected.ids, chosen.slots, rejected.slots, strict=False)
    prompt = sum(1 for _ in takewhile(lambda x: x[0] == x[1] and not x[2] and not x[3], both))
    return prompt, len(chosen.ids) - 1


def _kinds(targets: np.ndarray, ids: Ids) -> np.ndarray:
    """Where ids (N,) stand in ``TOKEN_TYPES``; ``<|EOT|>`` is text wherever its row is."""
    v = ids.vocabulary
    starts = [v.linguistic_start, v.semantic_start, v.marker_start]
    kinds = np.searchsorted(starts, targets, side="right")
    return np.where(targets == v.eot, 0, kinds)


def _alike(
    targets: np.ndarray, answers_: np.ndarray, kinds: np.ndarray, count: int
) -> list[list[bool]]:
    """Whether chosen and rejected have the same ids, by pair and kind."""

    def of(answer: int, kind: int) -> np.ndarray:
        return targets[(answers_ == answer) & (kinds == kind)]

    return [
        [np.array_equal(of(i, kind), of(count + i, kind)) for kind in range(len(TOKEN_TYPES))]
        for i in range(count)
    ]


def answers(row: dict[str, Any], side: str) -> list[dict[str, Any]]:
    """The messages of one side that answer the prompt; a side may repeat the prompt first."""
    prompt, messages = row["prompt"], row[side]
    found = messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages
    if not found or any(message["role"] != "assistant" for message in found):
        raise UsageError(
            f"{side} of the pair {row['id']} must be messages of the assistant, after nothing or "
            f"after the prompt's own messages"
        )
    return found


def turn(message: dict[str, Any], *, loss: bool = False) -> Turn:
    """A turn of an aqaa-jsonl message whose audio parts carry codes."""
    text = " ".join(part["text"] for part in message["content"] if part["type"] == "text")
    heard = [part for part in message["content"] if part["type"] == "audio"]
    speech = [CodePair(**part["codes"]) for part in heard]
    words = " ".join(part["text"] for part in heard if part.get("text"))
    role: Role = "human" if message["role"] == "user" else message["role"]
    return Turn(role, text, speech, loss, words)


def message(role: str, text: str, speech: list[CodePair]) -> dict[str, Any]:
    """The aqaa-jsonl message of a turn with codes; the inverse of :func:`turn`."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    for pair in speech:
        codes = {"linguistic": pair.linguistic, "semantic": pair.semantic}
        parts.append({"type": "audio", "codes": codes})
    return {"role": role, "content": parts}
