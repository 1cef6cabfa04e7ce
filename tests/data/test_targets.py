"""Documents, turns and faults are read from a batch's tensors; what is wrong has its place."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from aqaa.backbone.loading import Ids
from aqaa.data.collate import Document, TokenBatch, packed, padded
from aqaa.data.preferences import collated
from aqaa.data.targets import Target, faults, heard, targets
from aqaa.grammar import Slot
from aqaa.signals import CodePair, Dialogue, Turn
from aqaa.vocabulary import TOKEN_TYPES
from tests.golden.make import backbone

ASKED = CodePair([1, 2, 3, 4], [5, 6, 7, 8, 9, 10])
SAID = CodePair([11, 12, 13, 14, 15, 16, 17, 18], list(range(20, 32)))
SPOKEN: Dialogue = [
    Turn("system", "w03"),
    Turn("human", speech=[ASKED]),
    Turn("assistant", "w01 w02", [SAID], loss=True),
]
WRITTEN: Dialogue = [Turn("human", "w05 w06"), Turn("assistant", "w07", loss=True)]
TWICE: Dialogue = [*WRITTEN[:1], Turn("assistant", "w08"), *WRITTEN]
DIALOGUES = {"spoken": SPOKEN, "written": WRITTEN, "twice": TWICE}
WEIGHTS = {Slot.TEXT: 3.0, Slot.LINGUISTIC: 1.0, Slot.SEMANTIC: 0.7, Slot.AFTER: 1.0}


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Ids:
    return backbone(tmp_path_factory.mktemp("targets") / "model").ids


def documents(ids: Ids) -> list[Document]:
    made = [ids.layout.encode(d, ids.text, ids.vocabulary) for d in DIALOGUES.values()]
    return [Document(0, np.array(s.ids, np.int32), np.array(s.slots, np.int8)) for s in made]


def batch_of(ids: Ids, how: str) -> tuple[TokenBatch, list[list[str]]]:
    made, pad, names = documents(ids), ids.vocabulary.pad, list(DIALOGUES)
    if how == "padded":
        return padded("all", made, pad=pad), [[name] for name in names]
    rows = [[made[0]], [made[1], made[2]]]
    return packed(rows, len(made[0].ids) + 9, pad=pad), [names[:1], names[1:]]


Spoil = Callable[[TokenBatch], None]


def read(ids: Ids, how: str, spoil: Spoil = lambda batch: None) -> list[Target]:
    batch, names = batch_of(ids, how)
    spoil(batch)
    return targets(batch, names, WEIGHTS, ids.vocabulary.pad)


@pytest.mark.parametrize("how", ["padded", "packed"])
def test_documents_are_those_that_were_put_in(how: str, ids: Ids) -> None:
    found = read(ids, how)
    assert [target.name for target in found] == list(DIALOGUES)
    for target, document in zip(found, documents(ids), strict=True):
        whole, slots = document.ids.tolist(), document.slots.tolist()
        assert target.read == whole[:-1] and target.learn == whole[1:]
        assert target.slots == slots[1:]
        wanted = [WEIGHTS.get(Slot(slot), 0.0) for slot in slots[1:]]
        assert target.weight == pytest.approx(wanted)
        assert faults(target, ids) == []


@pytest.mark.parametrize("how", ["padded", "packed"])
def test_turns_are_heard_as_they_were_said(how: str, ids: Ids) -> None:
    for target, dialogue in zip(read(ids, how), DIALOGUES.values(), strict=True):
        turns = heard(target, ids)
        assert [turn.role for turn in turns] == [turn.role for turn in dialogue]
        assert [turn.text for turn in turns] == [turn.text for turn in dialogue]
        assert [turn.speech for turn in turns] == [turn.speech for turn in dialogue]
        for turn, said in zip(turns, dialogue, strict=True):
            some = sum(learnt for learnt, _ in turn.learnt.values())
            every = sum(all_of for _, all_of in turn.learnt.values())
            assert every == turn.end - turn.begin
            # The one forced id of a spoken answer, <audio_start>, has no weight.
            assert some == (every - bool(said.speech) if said.loss else 0)


def test_kinds_are_counted_apart(ids: Ids) -> None:
    answer = heard(read(ids, "padded")[0], ids)[-1]
    # two words and <|EOT|>; four groups; <text_end>, <audio_end>, and the forced <audio_start>
    assert answer.learnt == {
        "text": (3, 3), "linguistic": (8, 8), "semantic": (12, 12), "marker": (2, 3),
    }  # fmt: skip


def roll(batch: TokenBatch) -> None:
    batch.targets[:] = batch.targets.roll(-1, dims=1)


def no_shift(batch: TokenBatch) -> None:
    batch.targets[:] = batch.input_ids


def late_mask(batch: TokenBatch) -> None:
    batch.slots[:] = batch.slots.roll(1, dims=1)


def mask_on_everything(batch: TokenBatch) -> None:
    batch.slots[batch.slots == 0] = int(Slot.TEXT)


def half_a_mask(batch: TokenBatch) -> None:
    learnt = (batch.slots[0] > 0).nonzero().flatten()
    batch.slots[0, learnt[: len(learnt) // 2]] = 0


def no_mask(batch: TokenBatch) -> None:
    batch.slots[:] = 0


def no_offset(ids: Ids) -> Callable[[TokenBatch], None]:
    """Semantic codes without the offset of their book."""
    v = ids.vocabulary

    def spoil(batch: TokenBatch) -> None:
        for tensor in (batch.input_ids, batch.targets):
            semantic = (tensor >= v.semantic_start) & (tensor < v.marker_start)
            tensor[semantic] -= v.semantic_start - v.linguistic_start

    return spoil


def too_far(ids: Ids) -> Callable[[TokenBatch], None]:
    """Semantic codes with an offset that leads out of the table."""
    v = ids.vocabulary

    def spoil(batch: TokenBatch) -> None:
        for tensor in (batch.input_ids, batch.targets):
            semantic = (tensor >= v.semantic_start) & (tensor < v.marker_start)
            tensor[semantic] += v.used_rows

    return spoil


def one_document(batch: TokenBatch) -> None:
    assert batch.position_ids is not None
    batch.position_ids[:] = torch.arange(batch.position_ids.shape[1])


CASES = {
    "roll": (roll, "what is learnt is not the id that is read next"),
    "no_shift": (no_shift, "what is learnt is not the id that is read next"),
    "late_mask": (late_mask, "in another slot than the layout's"),
    "everything": (mask_on_everything, "ids of the turn of human are learnt"),
    "frame": (mask_on_everything, "ids of the frame or of the padding are learnt"),
    "half": (half_a_mask, "ids of an answer that is learnt are left out"),
    "no_mask": (no_mask, "nothing is learnt"),
}


@pytest.mark.parametrize("how", ["padded", "packed"])
@pytest.mark.parametrize("case", CASES)
def test_a_wrong_shift_or_mask_is_named(case: str, how: str, ids: Ids) -> None:
    spoil, sentence = CASES[case]
    found = [str(fault) for target in read(ids, how, spoil) for fault in faults(target, ids)]
    assert any(sentence in fault for fault in found), found


def test_a_wrong_mask_is_named_at_its_place(ids: Ids) -> None:
    (good, *_), (bad, *others) = read(ids, "padded"), read(ids, "padded", half_a_mask)
    (fault,) = faults(bad, ids)
    learnt = [at for at, slot in enumerate(good.slots) if slot]
    assert fault.places == learnt[: len(learnt) // 2]
    assert all(not faults(other, ids) for other in others)


def test_a_wrong_offset_is_named_and_not_heard(ids: Ids) -> None:
    spoken = read(ids, "padded", no_offset(ids))[0]
    (fault,) = faults(spoken, ids)
    v = ids.vocabulary
    first = spoken.slots.index(int(Slot.SEMANTIC))
    assert fault.places == [first]
    assert f"does not allow the linguistic id {v.linguistic_start + 20} in SEMANTIC" in str(fault)
    assert heard(spoken, ids)[-1].speech != SPOKEN[-1].speech


def test_ids_outside_the_table_mean_nothing(ids: Ids) -> None:
    spoken = read(ids, "padded", too_far(ids))[0]
    said = [str(fault) for fault in faults(spoken, ids)]
    assert any(f"ids outside 0..{ids.vocabulary.used_rows - 1} mean nothing" in s for s in said)
    assert heard(spoken, ids)[-1].learnt["nothing"] == (12, 12)


def test_documents_that_see_one_another_are_named(ids: Ids) -> None:
    found = read(ids, "packed", one_document)
    assert [target.name for target in found] == ["spoken", "written"]
    assert "another document begins inside" in " ".join(map(str, faults(found[1], ids)))


@pytest.mark.parametrize("shared", [True, False])
def test_a_pair_is_two_documents_and_its_mask_the_weight(shared: bool, ids: Ids) -> None:
    asked, said = SPOKEN[:2], SPOKEN[2]
    other = [*asked, Turn("assistant", "w04", said.speech, loss=True)]
    streams = [ids.layout.encode(d, ids.text, ids.vocabulary) for d in (SPOKEN, other)]
    keep = [kind == "text" for kind in TOKEN_TYPES]
    batch = collated([7], streams, ids, keep, shared_prompt=shared)
    weights = dict.fromkeys(WEIGHTS, 1.0)
    found = targets(batch, [["chosen"], ["rejected"]], weights, ids.vocabulary.pad)
    for target, stream, words in zip(found, streams, (3, 2), strict=True):
        assert (target.read, target.learn) == (stream.ids[:-1], stream.ids[1:])
        assert target.slots == stream.slots[1:] and faults(target, ids) == []
        assert heard(target, ids)[-1].learnt == {
            "text": (words, words), "linguistic": (0, 8), "semantic": (0, 12), "marker": (0, 3),
        }  # fmt: skip
