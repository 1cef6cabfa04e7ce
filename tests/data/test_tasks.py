"""Dialogues of several turns: from a manifest to a corpus, its clips, and what tasks make of it."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from aqaa.backbone.loading import Ids
from aqaa.data.convert import convert
from aqaa.data.corpus import Corpus
from aqaa.data.dialogues import DialogueBatches
from aqaa.data.keyed_clips import source
from aqaa.data.manifest import write_manifest
from aqaa.data.tasks import TASKS, Material, Materials
from aqaa.data.token_store import TokenStore, write_store
from aqaa.data.validate import validate
from aqaa.errors import UsageError
from aqaa.signals import CodePair, Turn
from aqaa.stream import Slot, StreamLayout
from aqaa.text import TextTokenizer
from aqaa.vocabulary import Vocabulary

DIALOGUES = 8


def heard(name: str, text: str = "") -> dict[str, Any]:
    return {"type": "audio", "path": f"{name}.wav", **({"text": text} if text else {})}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def message(role: str, *content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": role, "content": list(content), **more}


def dialogue(number: int) -> dict[str, Any]:
    """Three rounds; the second answer is not to be learnt, the third has two labels."""
    return {
        "id": f"d{number}",
        "kind": "chat",
        "messages": [
            message("system", text("be kind")),
            message("user", heard("q1", "first question")),
            message("assistant", text("first answer"), heard("a1")),
            message("user", heard("q2", "second question")),
            message("assistant", text("second answer"), heard("a2"), loss=False),
            message("user", heard("q3", "third question")),
            message("assistant", text("so glad"), heard("a3"), text("and so sad now"), heard("a4")),
        ],
    }


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talk")
    rng = np.random.default_rng(0)
    for i, name in enumerate(("q1", "a1", "q2", "a2", "q3", "a3", "a4")):
        samples = rng.integers(-9000, 9000, 4000 + 3000 * i).astype(np.int16)
        soundfile.write(str(folder / f"{name}.wav"), samples, 16_000, subtype="PCM_16")
    rows = [dialogue(n) for n in range(DIALOGUES)]
    write_manifest(folder / "talk.jsonl", rows)
    return folder / "talk.jsonl"


def corpus_of(manifest: Path, out: Path, writes: str) -> tuple[Corpus, TokenStore]:
    """The converted corpus with codes that are different for every clip."""
    convert(source=str(manifest), out=str(out), writes=writes)
    random_ = random.Random(0)
    codes = {
        clip.key: CodePair([random_.randrange(1024) for _ in range(4)],
                           [random_.randrange(4096) for _ in range(6)])
        for clip in source(out).clips
    }  # fmt: skip
    tokens = out.with_name(f"{out.name}_tokens")
    tokens.mkdir()
    meta = {"tokenizer_hash": "t", "corpus_hash": source(out).hash, "question_books": "both"}
    write_store(tokens, codes, meta)
    return Corpus(out), TokenStore(tokens)


@pytest.fixture(scope="module")
def each(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, TokenStore]:
    return corpus_of(manifest, tmp_path_factory.mktemp("each") / "corpus", "corpus")


@pytest.fixture(scope="module")
def whole(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, TokenStore]:
    return corpus_of(manifest, tmp_path_factory.mktemp("whole") / "corpus", "dialogues")


def ids_of(corpus: Corpus, **layout: Any) -> Ids:
    tokenizer = TextTokenizer.train_words([*corpus.domain["words"], "write", "sound", "speak",
                                           "transcribe", "read", "continue"])  # fmt: skip
    return Ids(tokenizer, Vocabulary(tokenizer.size), StreamLayout(**layout), "t")


def test_every_answer_becomes_a_row_with_what_came_before(each) -> None:
    corpus, store = each
    rows = corpus.rows("train")
    assert [row["id"] for row in rows[:2]] == ["d2-1", "d2-3"]  # the second is not learnt
    assert corpus.domain["counts"] == {"train": 12, "validation": 2, "test": 2}
    first, third = Materials(corpus, store, "train")[0], Materials(corpus, store, "train")[1]
    assert first.question == Turn("human", "", [store["train/d2-1"]], words="first question")
    assert first.answer == Turn("assistant", "first answer", [store["answers/d2-1"]], loss=True)
    assert first.earlier == []
    said = ["so glad", "and so sad now"]
    labels = [store["answers/d2-3.1"], store["answers/d2-3.2"]]
    assert third.answer == Turn("assistant", " ".join(said), labels, loss=True, pieces=said)
    assert third.question == Turn("human", "", [store["train/d2-3"]], words="third question")
    (asked, answered), (again, unlearnt) = third.earlier
    assert (asked, answered) == (first.question, Turn("assistant", "first answer",
                                                      first.answer.speech))  # fmt: skip
    assert again == Turn("human", "", [store["train/d2-3/1"]], words="second question")
    assert unlearnt == Turn("assistant", "second answer", [store["answers/d2-2"]])
    for split in ("train", "validation", "test"):
        found = validate(manifest=corpus.folder / f"{split}.jsonl", deep=True)
        assert not [f for f in found if f.code.startswith("E")], found


def test_no_clip_is_encoded_twice(each, whole) -> None:
    for corpus, _ in (each, whole):
        clips = source(corpus.folder).clips
        places = [(c.part["path"], c.part["start"]) for c in clips]
        assert len(set(places)) == len(places) == 7 * DIALOGUES


def test_a_whole_dialogue_is_one_row_with_its_own_losses(each, whole) -> None:
    corpus, store = whole
    assert corpus.domain["counts"] == {"train": 6, "validation": 1, "test": 1}
    material = Materials(corpus, store, "train")[0]
    assert material.row["id"] == "d2"
    asked = [q for q, _ in material.earlier] + [material.question]
    assert [t.speech for t in asked] == [[store[f"train/{k}"]] for k in ("d2/0", "d2/1", "d2")]
    answers = [a for _, a in material.earlier] + [material.answer]
    assert [answer.loss for answer in answers] == [True, False, True]
    ids = ids_of(corpus, history="audio")
    stream = ids.layout.encode(TASKS["aqtaa"](material), ids.text, ids.vocabulary)
    # What is learnt is what the rows of single answers learn.
    corpus_, store_ = each
    words = 0
    for place in (0, 1):
        one = TASKS["aqtaa"](Materials(corpus_, store_, "train")[place])
        words += sum(s == Slot.TEXT for s in
                     ids.layout.encode(one, ids.text, ids.vocabulary).slots)  # fmt: skip
    assert sum(slot == Slot.TEXT for slot in stream.slots) == words
    with pytest.raises(UsageError, match="give it a row of its own, or init with layout.history"):
        layout = StreamLayout()
        layout.encode(TASKS["aqtaa"](material), ids.text, ids.vocabulary)


# What each format makes of a question and an answer: (text, how many stretches of sound).
FORMS = {
    "tqta": (("third question", 0), ("so glad and so sad now", 0)),
    "aqta": (("", 1), ("so glad and so sad now", 0)),
    "taqta": (("third question", 1), ("so glad and so sad now", 0)),
    "aqtaa": (("", 1), ("so glad and so sad now", 2)),
    "aqaa": (("", 1), ("", 2)),
}


@pytest.mark.parametrize("task", FORMS)
@pytest.mark.parametrize("history", ["text", "audio", "none"])
def test_formats_hold_for_every_round(each, task: str, history: str) -> None:
    corpus, store = each
    material = Materials(corpus, store, "train")[1]
    turns = [turn for turn in TASKS[task](material) if turn.role != "system"]
    assert [(t.text, len(t.speech)) for t in turns[-2:]] == list(FORMS[task])
    assert [bool(t.speech) for t in turns] == [bool(FORMS[task][0][1]), bool(FORMS[task][1][1])] * 3
    assert [t.loss for t in turns] == [False] * 5 + [True]
    ids = ids_of(corpus, history=history)
    stream = ids.layout.encode(TASKS[task](material), ids.text, ids.vocabulary)
    v = ids.vocabulary
    sounds = sum(token == v.audio_start for token in stream.ids)
    asked, answered = FORMS[task][0][1], FORMS[task][1][1]
    kept = {"text": 0, "none": 0, "audio": 2 * asked + 2 * (answered > 0)}[history]
    assert sounds == kept + asked + answered
    assert sum(token == v.bot for token in stream.ids) - (task != "aqtaa") == (
        2 if history == "none" else 6
    )
    if history == "text":
        words = ids.text.decode([t for t in stream.ids if t < v.text_tokens and t not in (1, 3, 4)])
        for said in ("first question", "first answer", "second question", "second answer"):
            assert said in words


def test_tasks_of_one_sentence_take_the_last_round(each) -> None:
    corpus, store = each
    material = Materials(corpus, store, "train")[1]
    assert TASKS["asr"](material)[1:] == [
        material.question, Turn("assistant", "third question", loss=True)
    ]  # fmt: skip
    assert TASKS["tts"](material)[1].text == "so glad and so sad now"
    assert len(TASKS["continuation"](material)[-1].speech) == 2
    assert TASKS["interleaved"](material)[-1] == material.answer


@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        ([1, 0], "row d2-1 of train.jsonl has turns of assistant, user: a question"),
        ([0], "has turns of user: a question and its answer must take turns"),
        ([], "has turns of nobody"),
    ],
)
def test_turns_out_of_order_are_refused(each, keep: list[int], sentence: str) -> None:
    corpus, store = each
    row = corpus.rows("train")[0]
    broken = {**row, "messages": [row["messages"][i] for i in keep]}
    materials = Materials(corpus, store, "train")
    materials._rows = [broken]  # type: ignore[assignment]
    with pytest.raises(UsageError, match=sentence) as caught:
        materials[0]
    assert "\n" not in str(caught.value)


def test_a_question_that_is_not_spoken_is_refused_where_it_is_the_last(each) -> None:
    corpus, store = each
    row = corpus.rows("train")[0]
    mute = message("user", text("what?"))
    materials = Materials(corpus, store, "train")
    materials._rows = [{**row, "messages": [mute, row["messages"][1]]}]  # type: ignore[assignment]
    with pytest.raises(UsageError, match="the last question of row d2-1 of train.jsonl is mute"):
        materials[0]
    more = [mute, message("assistant", text("nothing")), *row["messages"]]
    materials._rows = [{**row, "messages": more}]  # type: ignore[assignment]
    found: Material = materials[0]
    assert found.earlier == [(Turn("human", "what?"), Turn("assistant", "nothing", loss=True))]


@pytest.mark.parametrize("row_tokens", [None, 512])
def test_a_row_whose_history_cannot_be_is_named_before_the_first_step(
    whole, row_tokens: int | None
) -> None:
    corpus, store = whole
    settings = {"tasks": {"aqtaa": {"share": 1, "batch": 2}}, "steps": 2, "code_noise": 0.0}

    def bind(history: str) -> DialogueBatches:
        made = DialogueBatches(corpus=str(corpus.folder), tokens=str(store.folder),
                               row_tokens=row_tokens, **settings)  # type: ignore[arg-type] # fmt: skip
        made.store.check_corpus = lambda corpus: None  # type: ignore[method-assign]
        made.bind(ids_of(corpus, history=history))
        return made

    with pytest.raises(UsageError, match="row d2 as aqtaa: an answer before the last question"):
        bind("text")
    batch = bind("audio").batch(0)
    learnt = (batch.slots != Slot.NONE).any(1)
    assert learnt.all() and batch.task in ("aqtaa", "packed")


def test_an_earlier_answer_of_no_clip_is_refused(each) -> None:
    corpus, store = each
    row = corpus.rows("train")[1]
    row["messages"][1]["content"][1].pop("ref")
    materials = Materials(corpus, store, "train")
    materials._rows = [row]  # type: ignore[assignment]
    with pytest.raises(UsageError, match="row d2-3 of train.jsonl: the sound of an earlier answer"):
        materials[0]
