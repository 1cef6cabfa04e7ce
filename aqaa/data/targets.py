"""What a batch of the backbone asks to be learnt, read back from its own tensors.

Nothing here knows how a batch was made: documents are cut at their positions, turns at their
frames, and what ought to be learnt is worked out again from the layout, so that a wrong shift, a
wrong mask or a wrong id cannot explain itself. Letters: B rows, T ids, n ids of a document.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor

from aqaa.backbone.loading import Ids
from aqaa.data.preferences import PreferenceBatch
from aqaa.grammar import AnswerGrammar, Mode, Slot
from aqaa.signals import CodePair, Role
from aqaa.vocabulary import TOKEN_TYPES, Vocabulary

_NOTHING = "nothing"  # the kind of an id that means nothing


@dataclass(frozen=True)
class Target:
    """One document as the loss sees it.

    ``read`` (n,) ids go in; after each of them the id in ``learn`` (n,) is asked for, in the slot
    of ``slots`` (n,), with ``weight`` (n,) in the loss: 0 where nothing is learnt.
    """

    name: str
    read: list[int]
    learn: list[int]
    slots: list[int]
    weight: list[float]


@dataclass(frozen=True)
class Heard:
    """A turn of a document; ``begin`` and ``end`` are places in :attr:`Target.learn`.

    The frame, ``<|BOT|>`` and the role, lies before ``begin``; ``<|EOT|>`` is the last id.
    ``learnt`` counts by kind of id how many of how many carry loss.
    """

    role: str
    begin: int
    end: int
    text: str
    speech: list[CodePair]
    learnt: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Fault:
    """Something wrong with a document: a sentence, and the places it is about."""

    what: str
    places: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.places[:6]))
        more = f" and {len(self.places) - 6} more" if len(self.places) > 6 else ""
        return f"{self.what}, at {shown}{more}" if self.places else self.what


def targets(
    batch: Any, names: Sequence[Sequence[str]], weights: Mapping[Slot, float], pad: int
) -> list[Target]:
    """The documents of a batch in the order of its rows.

    Args:
        batch: of pretrain or sft: ``input_ids``, ``targets`` and ``slots`` (B, T), and, where it
            has them, ``position_ids`` (B, T); or of dpo, see :class:`PreferenceBatch`.
        names: of the documents, by row.
        weights: of each slot in the loss; a slot that is left out carries none.
        pad: what rows are filled up with.
    """
    if isinstance(batch, PreferenceBatch):
        answers = (_answer(batch, answer, weights, pad) for answer in range(2 * len(batch.pairs)))
        flat = [name for row in names for name in row]
        return [Target(name, *parts) for name, parts in zip(flat, answers, strict=True)]
    weight = _weight(batch.slots, weights)
    found = []
    for row, named in enumerate(names):
        rest = iter(named)
        for begin, end in _spans(batch, row, pad):
            fields = (batch.input_ids, batch.targets, batch.slots, weight)
            parts = (tensor[row, begin:end].tolist() for tensor in fields)
            found.append(Target(next(rest, f"a document without a name in row {row}"), *parts))
    return found


def _weight(slots: Tensor, weights: Mapping[Slot, float]) -> Tensor:
    """What each of any number of slots weighs in the loss."""
    weight = torch.zeros(slots.shape)
    for slot, value in weights.items():
        weight = weight.masked_fill(slots == slot, value)
    return weight


def _answer(
    batch: PreferenceBatch, answer: int, weights: Mapping[Slot, float], pad: int
) -> tuple[list[int], list[int], list[int], list[float]]:
    """One answer of a pair with its prompt: the fields of a :class:`Target` behind its name.

    The batch says what is learnt alone; elsewhere it is the id that is read next.
    """
    count = len(batch.pairs)
    row = answer % count if batch.forks is not None else answer
    read: list[int] = batch.input_ids[row][: _length(batch.input_ids[row], pad)].tolist()
    mine = batch.answers == answer
    places = batch.at[1][mine].tolist()
    if batch.forks is not None:
        prompt, second = batch.forks[row].tolist()
        if answer < count:
            read = read[:second]
        else:
            read = read[:prompt] + read[second:]
            places = [at if at < prompt else at - second + prompt for at in places]
    learn, slots, weight = read[1:] + [pad], [0] * len(read), [0.0] * len(read)
    counted = torch.arange(len(mine))[mine] < batch.counted
    weighed = (_weight(batch.slots, weights)[mine] * counted).tolist()
    learnt = zip(places, batch.targets[mine].tolist(), batch.slots[mine].tolist(), weighed,
                 strict=True)  # fmt: skip
    for at, token, slot, value in learnt:
        learn[at], slots[at], weight[at] = token, slot, value
    return read, learn, slots, weight


def _length(row: Tensor, pad: int) -> int:
    return int((row != pad).nonzero().max()) + 1


def _spans(batch: Any, row: int, pad: int) -> Iterator[tuple[int, int]]:
    """From where to where each document of a row goes; padding is none, unless it is learnt."""
    filled = (batch.input_ids[row] != pad) | (batch.targets[row] != pad) | (batch.slots[row] > 0)
    positions = getattr(batch, "position_ids", None)
    if positions is None:
        yield 0, int(filled.nonzero().max()) + 1
        return
    begins = (positions[row] == 0).nonzero().flatten().tolist()
    for begin, end in zip(begins, [*begins[1:], len(filled)], strict=True):
        if filled[begin:end].any():
            yield begin, end


def heard(target: Target, ids: Ids) -> list[Heard]:
    """The turns of a document, from what is asked to be learnt."""
    return [_turn(target, ids, *frame) for frame in _frames(target.learn, ids)]


def _frames(learn: Sequence[int], ids: Ids) -> Iterator[tuple[str, int, int]]:
    """Role, begin and end of the content of every turn, ``<|EOT|>`` included."""
    v = ids.vocabulary
    headers = {role: ids.text.encode(f"{role}\n") for role in get_args(Role)}
    at = 0
    while at < len(learn):
        if learn[at] != v.bot:
            at += 1
            continue
        named = [(r, h) for r, h in headers.items() if list(learn[at + 1 :][: len(h)]) == h]
        role, header = named[0] if named else ("nobody", [])
        begin = end = at + 1 + len(header)
        while end < len(learn) and learn[end] != v.bot:
            end += 1
            if learn[end - 1] == v.eot:
                break
        yield role, begin, end
        at = end


def _turn(target: Target, ids: Ids, role: str, begin: int, end: int) -> Heard:
    content = target.learn[begin:end]
    kinds = [kind(token, ids.vocabulary) for token in content]
    known = [token for token, k in zip(content, kinds, strict=True) if k != _NOTHING]
    answer = ids.layout.parse(known, ids.text, ids.vocabulary)
    learnt = {}
    for name in (*TOKEN_TYPES, _NOTHING):
        of = [w > 0 for k, w in zip(kinds, target.weight[begin:end], strict=True) if k == name]
        if of:
            learnt[name] = (sum(of), len(of))
    return Heard(role, begin, end, answer.text, answer.speech, learnt)


def kind(token: int, vocabulary: Vocabulary) -> str:
    """One of ``TOKEN_TYPES``, or ``nothing``."""
    if not 0 <= token < vocabulary.used_rows:
        return _NOTHING
    return vocabulary.token_type(token)


# ---- what is wrong


def faults(target: Target, ids: Ids) -> list[Fault]:
    """Everything about a document that cannot be meant."""
    found = [*_shift(target), *_ids(target, ids)]
    framed = set(range(len(target.learn)))
    for turn in heard(target, ids):
        framed -= set(range(turn.begin, turn.end))
        found += _mask(target, turn)
        if turn.role == "assistant" and any(target.slots[turn.begin : turn.end]):
            found += _slots(target, turn, ids)
    if outside := [at for at in sorted(framed) if target.slots[at]]:
        found.append(Fault("ids of the frame or of the padding are learnt", outside))
    if not any(target.weight):
        found.append(Fault("nothing is learnt"))
    return found


def _shift(target: Target) -> Iterator[Fault]:
    """What is learnt must be what is read next; the last id has nothing after it."""
    pairs = zip(target.learn, target.read[1:], strict=False)
    if wrong := [at for at, (learn, read) in enumerate(pairs) if learn != read]:
        yield Fault("what is learnt is not the id that is read next", wrong)


def _ids(target: Target, ids: Ids) -> Iterator[Fault]:
    v = ids.vocabulary
    if wrong := [at for at, token in enumerate(target.learn) if kind(token, v) == _NOTHING]:
        yield Fault(f"ids outside 0..{v.used_rows - 1} mean nothing", wrong)
    if target.read[0] != v.bos:
        yield Fault("the document does not begin with <s>", [0])
    if inside := [at for at, token in enumerate(target.read) if at and token == v.bos]:
        yield Fault("another document begins inside", inside)


def _mask(target: Target, turn: Heard) -> Iterator[Fault]:
    """A turn is learnt as a whole or not at all, and only the assistant's."""
    places = range(turn.begin, turn.end)
    learnt = [at for at in places if target.slots[at]]
    if turn.role != "assistant":
        if learnt:
            yield Fault(f"ids of the turn of {turn.role} are learnt", learnt)
    elif learnt and len(learnt) < len(places):
        left = [at for at in places if not target.slots[at]]
        yield Fault("ids of an answer that is learnt are left out", left)


def _slots(target: Target, turn: Heard, ids: Ids) -> Iterator[Fault]:
    """The slot of every id, and the id itself, must be what the layout says of this answer."""
    content = target.learn[turn.begin : turn.end]
    v = ids.vocabulary
    mode: Mode = "both" if content[0] != v.audio_start else "speech"
    grammar = AnswerGrammar(ids.layout, v, mode if v.audio_start in content else "text")
    wrong = []
    for at, token in enumerate(content, turn.begin):
        if target.slots[at] and target.slots[at] != grammar.slot:
            wrong.append(at)
        if not grammar.allows(token):
            what = f"the {kind(token, v)} id {token} in {grammar.slot.name}"
            yield Fault(f"the layout does not allow {what}", [at])
            break
        grammar.advance(token)
    if wrong:
        yield Fault("ids are decided in another slot than the layout's", wrong)
