"""Sequences of the training tasks: what is a target, what carries loss, what is noisy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from aqaa.backbone.loading import Ids
from aqaa.data import dialogues
from aqaa.data.collate import TokenBatch
from aqaa.data.corpus import Corpus, answer_text, question_part
from aqaa.data.dialogues import DialogueBatches, nearest_codes
from aqaa.data.tasks import TASKS, Materials
from aqaa.data.token_store import TokenStore
from aqaa.errors import UsageError
from aqaa.stream import Slot
from tests.conftest import Chain

# Which kinds of id a task is trained on.
LOSS = {
    "continuation": {Slot.LINGUISTIC, Slot.SEMANTIC, Slot.AFTER},
    "asr": {Slot.TEXT},
    "tts": {Slot.LINGUISTIC, Slot.SEMANTIC, Slot.AFTER},
    "interleaved": {Slot.TEXT, Slot.LINGUISTIC, Slot.SEMANTIC, Slot.AFTER},
    "tqta": {Slot.TEXT},
    "aqta": {Slot.TEXT},
    "aqtaa": {Slot.TEXT, Slot.LINGUISTIC, Slot.SEMANTIC, Slot.AFTER},
    "aqaa": {Slot.LINGUISTIC, Slot.SEMANTIC, Slot.AFTER},
    "taqta": {Slot.TEXT},
}
SPOKEN_QUESTION = {"asr", "aqta", "aqtaa", "aqaa", "taqta"}


def source(chain: Chain, task: str, noise: float = 0.0, *, batch: int = 8) -> DialogueBatches:
    made = DialogueBatches(
        corpus=str(chain / "corpus"),
        tokens=str(chain / "tokens"),
        tasks={task: {"share": 1.0, "batch": batch}},
        steps=4,
        code_noise=noise,
        validation_rows=5,
    )
    made.bind(Ids.load(chain / "init"))
    return made


def test_every_task_is_listed_here() -> None:
    assert set(LOSS) == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_targets_are_the_inputs_shifted_and_loss_lies_on_the_answer(
    chain: Chain, task: str
) -> None:
    ids = Ids.load(chain / "init")
    batch = source(chain, task).batch(0)
    v = ids.vocabulary
    assert batch.task == task and len(batch.input_ids) == 8
    seen: set[int] = set()
    for inputs, targets, slots in zip(*batch[1:4], strict=True):
        length = int((inputs != v.pad).sum())
        assert (inputs[:length] != v.pad).all() and (inputs[length:] == v.pad).all()
        assert torch.equal(inputs[1:length], targets[: length - 1])
        assert targets[length - 1] == v.eot and (targets[length:] == v.pad).all()
        assert (slots[length:] == Slot.NONE).all()
        # The assistant's turn is the last one: loss on all of it but what is forced.
        start = int((inputs == v.bot).nonzero()[-1])
        header = len(ids.text.encode("assistant\n"))
        assert (slots[: start + header] == Slot.NONE).all()
        assert (slots[start + header : length] != Slot.NONE).all()
        assert slots[length - 1] in (Slot.TEXT, Slot.AFTER)  # <|EOT|> is always learnt
        seen |= set(slots.tolist())
    assert seen - {Slot.NONE, Slot.FORCED} == LOSS[task]
    assert bool((batch.slots == Slot.FORCED).any()) == (Slot.SEMANTIC in LOSS[task])


@pytest.mark.parametrize("task", TASKS)
def test_every_target_is_among_the_ids_of_its_slot(chain: Chain, task: str) -> None:
    ids = Ids.load(chain / "init")
    batch = source(chain, task).batch(1)
    for slot in (Slot.TEXT, Slot.LINGUISTIC, Slot.SEMANTIC, Slot.AFTER):
        found = set(batch.targets[batch.slots == slot].tolist())
        assert found <= set(ids.layout.slot_ids(slot, ids.vocabulary))


@pytest.mark.parametrize("task", TASKS)
def test_noise_touches_question_codes_alone_and_its_share_of_them(chain: Chain, task: str) -> None:
    share = 0.3
    clean, noisy = source(chain, task), source(chain, task, share)
    v = Ids.load(chain / "init").vocabulary
    heard = changed = 0
    for step in range(4):
        a, b = clean.batch(step), noisy.batch(step)
        assert torch.equal(a.slots, b.slots)
        supervised = a.slots != Slot.NONE
        assert torch.equal(a.targets[supervised], b.targets[supervised])
        linguistic = (a.targets >= v.linguistic_start) & (a.targets < v.semantic_start)
        question = linguistic & ~supervised
        touched = a.targets != b.targets
        assert not (touched & ~question).any()
        wrong = b.targets[touched]
        assert ((wrong >= v.linguistic_start) & (wrong < v.semantic_start)).all()
        heard, changed = heard + int(question.sum()), changed + int(touched.sum())
    assert (heard > 0) == (task in SPOKEN_QUESTION)
    if heard:
        assert share * 0.8 < changed / heard < share * 1.2


def test_noise_prefers_near_codes(chain: Chain) -> None:
    near = nearest_codes(TokenStore(chain / "tokens"))
    assert near.shape == (1024, 8) and not (near == np.arange(1024)[:, None]).any()
    start = Ids.load(chain / "init").vocabulary.linguistic_start
    clean, noisy = source(chain, "asr"), source(chain, "asr", 0.5)
    total = close = 0
    for step in range(4):
        a, b = clean.batch(step).input_ids, noisy.batch(step).input_ids
        for was, now in zip(a[a != b] - start, b[a != b] - start, strict=True):
            total, close = total + 1, close + int(int(now) in near[int(was)])
    assert 0.6 < close / total < 0.85


def test_the_periodic_check_has_unseen_questions_without_noise(chain: Chain) -> None:
    ids = Ids.load(chain / "init")
    made = source(chain, "aqtaa", 0.9)
    store, corpus = TokenStore(chain / "tokens"), Corpus(chain / "corpus")
    rows = Materials(corpus, store, "validation")
    expected = {
        tuple(ids.layout.encode(TASKS["aqtaa"](rows[i]), ids.text, ids.vocabulary).ids[:-1])
        for i in range(5)
    }
    (batch,) = made.validation()
    found = {tuple(row[row != ids.vocabulary.pad].tolist()) for row in batch.input_ids}
    assert found == expected


def test_turns_say_what_the_rows_say(chain: Chain) -> None:
    store, corpus = TokenStore(chain / "tokens"), Corpus(chain / "corpus")
    rows = corpus.rows("train")
    styled = next(i for i, row in enumerate(rows) if row["meta"]["style"] == "high")
    material = Materials(corpus, store, "train")[styled]
    read, speak = TASKS["interleaved"](material), TASKS["tts"](material)
    assert read[0].text == "read in a high voice"
    assert speak[1].text == f"{answer_text(rows[styled])} in a high voice"
    assert TASKS["asr"](material)[-1].text == question_part(rows[styled])["text"]
    both = TASKS["taqta"](material)[1]
    assert both.text == question_part(rows[styled])["text"]
    assert both.speech == material.question.speech and not both.loss
    answer = TASKS["aqtaa"](material)[-1]
    assert answer.text == answer_text(rows[styled]) and answer.loss
    assert answer.speech == [store[f"answers/{rows[styled]['meta']['answer_id']}"]]
    assert not TASKS["aqtaa"](material)[0].loss


def test_shares_decide_how_often_a_task_comes(chain: Chain) -> None:
    made = DialogueBatches(
        corpus=str(chain / "corpus"),
        tokens=str(chain / "tokens"),
        tasks={"asr": {"share": 3, "batch": 2}, "tts": {"share": 1, "batch": 5}},
        steps=80,
    )
    made.bind(Ids.load(chain / "init"))
    batches: list[TokenBatch] = [made.batch(step) for step in range(80)]
    assert 48 < sum(b.task == "asr" for b in batches) < 72
    assert {(b.task, len(b.input_ids)) for b in batches} == {("asr", 2), ("tts", 5)}


def test_codes_of_other_tokenizers_are_refused(chain: Chain) -> None:
    from dataclasses import replace

    made = source(chain, "asr")
    with pytest.raises(UsageError, match="codes of two tokenizers are not interchangeable"):
        made.bind(replace(Ids.load(chain / "init"), tokenizer_hash="other"))


def test_mixtures_that_make_no_sense(chain: Chain, tmp_path: Path) -> None:
    folders = {"corpus": str(chain / "corpus"), "tokens": str(chain / "tokens")}
    with pytest.raises(UsageError, match=r"unknown tasks \['asd'\]; known: continuation, asr"):
        DialogueBatches(**folders, tasks={"asd": {"share": 1}}, steps=1)
    with pytest.raises(UsageError, match="must not be negative and not all zero"):
        DialogueBatches(**folders, tasks={}, steps=1)
    with pytest.raises(UsageError, match="60 rows do not make batches of 61"):
        source(chain, "asr", batch=61)
    with pytest.raises(UsageError, match="is not a corpus"):
        DialogueBatches(corpus=str(tmp_path), tokens=folders["tokens"], tasks={}, steps=1)
    with pytest.raises(UsageError, match="is not a token store"):
        DialogueBatches(corpus=folders["corpus"], tokens=str(tmp_path), tasks={}, steps=1)


MIXTURE = {"aqtaa": 0.5, "asr": 0.2, "tts": 0.3}


def packed(chain: Chain, row_tokens: int, *, noise: float = 0.0, rows: int = 2) -> DialogueBatches:
    made = DialogueBatches(
        corpus=str(chain / "corpus"),
        tokens=str(chain / "tokens"),
        tasks={name: {"share": share} for name, share in MIXTURE.items()},
        steps=4,
        code_noise=noise,
        validation_rows=5,
        row_tokens=row_tokens,
        rows=rows,
    )
    made.bind(Ids.load(chain / "init"))
    return made


def tensors(batch: TokenBatch) -> list[torch.Tensor]:
    """Everything of a batch that is one."""
    found = [value for value in batch if isinstance(value, torch.Tensor)]
    assert len(found) == 5
    return found


def documents(batch: TokenBatch) -> list[tuple[int, ...]]:
    """The documents of all rows, each its inputs and its last target; padding left out."""
    found = []
    assert batch.position_ids is not None
    for inputs, targets, slots, positions in zip(
        batch.input_ids, batch.targets, batch.slots, batch.position_ids, strict=True
    ):
        starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(inputs)]
        for begin, end in zip(starts[:-1], starts[1:], strict=True):
            if slots[begin:end].any():
                found.append((*inputs[begin:end].tolist(), int(targets[end - 1])))
    return found


@pytest.mark.parametrize("row_tokens", [512, 1024])
def test_packed_rows_are_filled_with_the_very_documents(chain: Chain, row_tokens: int) -> None:
    made = packed(chain, row_tokens)
    if row_tokens == 512:  # 60 rows make too few of the longer ones: the last is half empty
        steps = made.packing.rows // 2
        sizes = [len(d) - 1 for step in range(steps) for d in documents(made.batch(step))]
        assert sum(sizes) / (2 * steps * row_tokens) > 0.97
    ids = Ids.load(chain / "init")
    rows = Materials(Corpus(chain / "corpus"), TokenStore(chain / "tokens"), "train")
    for step in (0, 3, 1000):
        batch = made.batch(step)
        assert batch.input_ids.shape == (2, row_tokens)
        wanted = [
            tuple(ids.layout.encode(TASKS[task](rows[i]), ids.text, ids.vocabulary).ids)
            for row in made.drawn(step)
            for task, i in row
        ]
        assert documents(batch) == wanted
        places = {list(MIXTURE).index(task) for row in made.drawn(step) for task, _ in row}
        assert set(batch.sources[batch.slots > 0].tolist()) == places


def test_packed_batches_are_a_function_of_seed_and_step(chain: Chain) -> None:
    made, other = packed(chain, 512, noise=0.3), packed(chain, 512, noise=0.3)
    late = other.batch(77)
    for step in (5, 77):
        batch = made.batch(step)
    assert all(map(torch.equal, tensors(batch), tensors(late)))
    assert not torch.equal(made.batch(5).input_ids, late.input_ids)


def test_the_check_is_packed_as_well(chain: Chain) -> None:
    found = [d for batch in packed(chain, 1024).validation() for d in documents(batch)]
    wanted = []
    for task in MIXTURE:
        (batch,) = source(chain, task).validation()
        for inputs, targets, slots in zip(batch.input_ids, batch.targets, batch.slots, strict=True):
            n = int(slots.nonzero()[-1]) + 1
            wanted.append((*inputs[:n].tolist(), int(targets[n - 1])))
    assert sorted(found) == sorted(wanted)


def test_documents_longer_than_a_row_are_refused(chain: Chain) -> None:
    with pytest.raises(UsageError, match=r"documents are longer than data.row_tokens=64, the "
                       r"longest is row train-\d+ as aqtaa with \d+ ids: raise"):  # fmt: skip
        packed(chain, 64)
    with pytest.raises(UsageError, match="rows=0 of row_tokens=64 ids: each must be 1 or more"):
        packed(chain, 64, rows=0)


def test_few_documents_are_kept_and_batches_are_the_same(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy, tight = packed(chain, 512, noise=0.3), packed(chain, 512, noise=0.3)
    wanted = [roomy.batch(step) for step in (3, 1, 3, 0)]
    assert sum(len(document.ids) for document in roomy._cache.values()) > 2000
    monkeypatch.setattr(dialogues, "_CACHE_TOKENS", 600)
    for batch, step in zip(wanted, (3, 1, 3, 0), strict=True):
        assert all(map(torch.equal, tensors(batch), tensors(tight.batch(step))))
        assert sum(len(document.ids) for document in tight._cache.values()) <= 600


def test_an_origin_names_row_and_sound(chain: Chain) -> None:
    made = source(chain, "aqtaa")
    row = Corpus(chain / "corpus").rows("train")[3]
    found = made.origin(3)
    assert found["id"] == row["id"] and len(found["sound"]) == 2
    part = question_part(row)
    assert found["sound"][0].startswith(str(chain / "corpus" / part["path"]))
