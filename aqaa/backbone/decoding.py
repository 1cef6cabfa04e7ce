"""Writing an answer id by id under the layout's grammar.

Letters: V table rows, W width, S rows of a slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aqaa.backbone.loading import Backbone
from aqaa.grammar import AnswerGrammar, Mode, Slot


@dataclass(frozen=True)
class Sampling:
    """How an id is picked.

    Args:
        temperature: 0 takes the best id.
        top_p: smallest set of ids with this probability is sampled from.
        text_temperature: temperature of text slots where it differs (None: the same).
        max_tokens: the answer is cut here.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    text_temperature: float | None = None
    max_tokens: int = 512


class Decoder:
    """Keeps each slot's rows of the output table ready."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        slots: list[Slot] = [s for s in Slot if s not in (Slot.NONE, Slot.FORCED)]
        self._rows = {slot: backbone.slot_rows(slot) for slot in slots}
        table = backbone.table.detach()
        self._table = {slot: table[rows] for slot, rows in self._rows.items()}
        self._index = {
            slot: {int(row): i for i, row in enumerate(rows)} for slot, rows in self._rows.items()
        }

    @torch.inference_mode()
    def answer(
        self,
        prompt: list[int],
        *,
        mode: Mode = "both",
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
        begun: Sequence[int] = (),
        stop_at: int | None = None,
    ) -> list[int]:
        """Ids of one answer, up to and with ``<|EOT|>`` unless it was cut at ``max_tokens``.

        Args:
            prompt: ids up to the assistant's header.
            mode: a written answer, a spoken one, or both.
            sampling: greedy when None.
            generator: randomness of the sampling.
            begun: first ids of the answer, taken as they are.
            stop_at: stop after this id.
        """
        sampling = sampling or Sampling()
        ids = self._backbone.ids
        grammar = AnswerGrammar(ids.layout, ids.vocabulary, mode)
        out = list(begun)
        for token in out:
            grammar.advance(token)
        if grammar.finished:
            return out
        step = self._backbone.hidden(torch.tensor([[*prompt, *out]]), use_cache=True)
        while len(out) < sampling.max_tokens:
            forced = grammar.forced
            if forced is not None:
                token = forced
            else:
                token = self._pick(step.last_hidden_state[0, -1], grammar, sampling, generator)
            out.append(token)
            grammar.advance(token)
            if grammar.finished or token == stop_at:
                break
            step = self._backbone.hidden(
                torch.tensor([[token]]), past_key_values=step.past_key_values, use_cache=True
            )
        return out

    def _pick(
        self,
        hidden: Tensor,
        grammar: AnswerGrammar,
        sampling: Sampling,
        generator: torch.Generator | None,
    ) -> int:
        slot = grammar.slot
        logits = self._table[slot] @ hidden
        index = self._index[slot]
        refused = [index[token] for token in grammar.refused() if token in index]
        logits[refused] = float("-inf")
        temperature = sampling.temperature
        if slot in (Slot.TEXT, Slot.AFTER) and sampling.text_temperature is not None:
            temperature = sampling.text_temperature
        if temperature == 0:
            return int(self._rows[slot][logits.argmax()])
        probabilities = _nucleus((logits / temperature).softmax(-1), sampling.top_p)
        return int(self._rows[slot][torch.multinomial(probabilities, 1, generator=generator)])


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero the tail beyond the smallest set that holds ``top_p``; (S,) -> (S,)."""
    if top_p >= 1:
        return probabilities
    ordered, order = probabilities.sort(descending=True)
    outside = ordered.cumsum(0) - ordered >= top_p
    return probabilities.index_fill(0, order[outside], 0.0)
