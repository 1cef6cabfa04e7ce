"""Preference pairs as batches. Letters: B pairs (2B answers), T ids, N supervised positions."""

import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aqaa.backbone.loading import Ids
from aqaa.data.manifest import read_manifest
from aqaa.errors import UsageError
from aqaa.signals import CodePair, Role, Turn
from aqaa.storage import sha256_file

_SIDES = ("chosen", "rejected")


class PreferenceBatch(NamedTuple):
    """Answers 0..B-1 are chosen, B..2B-1 rejected, of ``pairs`` (B,).

    ``input_ids``, ``targets``, ``slots`` (2B, T); ``keep`` (2B, T) is 1 where the target is not an
    audio id or marker, the indicator of Eq. 2; ``<|EOT|>`` is a text id.
    """

    pairs: list[int]
    input_ids: Tensor
    targets: Tensor
    slots: Tensor
    keep: Tensor


class PreferenceBatches:
    """Pairs of answers to one question; a batch is a pure function of (seed, step).

    Args:
        pairs: folder of `aqaa data pairs`.
        batch: pairs a step.
        mask: ``audio`` leaves audio ids and markers, ``<text_end>`` among them, out of the
            preference (paper); ``none`` keeps all.
        seed: decides the order.
    """

    def __init__(self, *, pairs: str, batch: int = 8, mask: str = "audio", seed: int = 0) -> None:
        if mask not in ("audio", "none"):
            raise UsageError(f"mask={mask} is neither audio nor none")
        self._file = Path(pairs) / "pairs.jsonl"
        self.rows = read_manifest(self._file)
        if not self.rows:
            raise UsageError(f"{self._file} holds no pair")
        for row in self.rows:
            for side in _SIDES:
                answers(row, side)
        self._batch = min(batch, len(self.rows))
        self.mask = mask
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
        ids, audio_from = self._ids, self._ids.vocabulary.linguistic_start
        streams = []
        for side in _SIDES:
            for i in pairs:
                row = self.rows[i]
                dialogue = [turn(m) for m in row["prompt"]]
                dialogue += [turn(m, loss=True) for m in answers(row, side)]
                streams.append(ids.layout.encode(dialogue, ids.text, ids.vocabulary))
        longest = max(len(s.ids) for s in streams) - 1
        shape = (len(streams), longest)
        inputs = torch.full(shape, ids.vocabulary.pad)
        targets, slots = inputs.clone(), torch.zeros(shape, dtype=torch.long)
        for i, stream in enumerate(streams):
            n = len(stream.ids) - 1
            inputs[i, :n] = torch.tensor(stream.ids[:-1])
            targets[i, :n] = torch.tensor(stream.ids[1:])
            slots[i, :n] = torch.tensor(stream.slots[1:])
        keep = torch.ones(shape) if self.mask == "none" else (targets < audio_from).float()
        return PreferenceBatch(pairs, inputs, targets, slots, keep)


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
