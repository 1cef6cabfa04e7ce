"""Preference pairs: sampled, stored, read back as batches, with the mask of Eq. 2."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aqaa.backbone.decoding import Decoder
from aqaa.backbone.loading import Ids
from aqaa.data.corpus import Corpus, answer_text
from aqaa.data.manifest import read_manifest, write_manifest
from aqaa.data.preferences import PreferenceBatch, PreferenceBatches, message, turn
from aqaa.data.token_store import TokenStore
from aqaa.data.validate import validate
from aqaa.errors import UsageError
from aqaa.evaluation.pairs import pairs
from aqaa.losses.masked_dpo import MASKS
from aqaa.signals import CodePair, Turn
from aqaa.storage import read_json, tree_hash
from aqaa.stream import Stream
from aqaa.vocabulary import TOKEN_TYPES
from tests.conftest import Chain


@pytest.fixture(scope="module")
def ids(chain: Chain) -> Ids:
    return Ids.load(chain / "init")


@pytest.fixture(scope="module")
def crafted(chain: Chain, ids: Ids, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs whose sides differ in length."""
    folder = tmp_path_factory.mktemp("crafted")
    store, corpus = TokenStore(chain / "tokens"), Corpus(chain / "corpus")
    rows = corpus.rows("train")
    made = []
    for i, row in enumerate(rows[:4]):
        other = next(r for r in rows if answer_text(r) != answer_text(row))
        spoken = [store[f"answers/{r['meta']['answer_id']}"] for r in (row, other)]
        made.append(
            {
                "id": f"pair-{i}",
                "kind": "preference",
                "meta": {"tokenizer_hash": ids.tokenizer_hash},
                "prompt": [message("user", "", [store[f"train/{row['id']}"]])],
                "chosen": [message("assistant", answer_text(row), [spoken[0]])],
                "rejected": [message("assistant", answer_text(other), [spoken[1]])],
            }
        )
    write_manifest(folder / "pairs.jsonl", made)
    return folder


def batches(
    folder: Path, ids: Ids, mask: str = "audio", batch: int = 2, *, shared_prompt: bool = True
) -> PreferenceBatches:
    source = PreferenceBatches(
        pairs=str(folder), batch=batch, mask=mask, shared_prompt=shared_prompt
    )  # fmt: skip
    source.bind(ids)
    return source


def test_a_message_is_a_turn_and_back() -> None:
    pair = CodePair([1, 2], [3, 4, 5])
    for role in ("human", "assistant"):
        there = message("user" if role == "human" else role, "two words", [pair, pair])
        assert turn(there) == Turn(role, "two words", [pair, pair])  # type: ignore[arg-type]
    assert turn(message("assistant", "", [pair]), loss=True).loss


def encoded(source: PreferenceBatches, ids: Ids, pair: int, side: str) -> Stream:
    """The stream of one answer behind its prompt, made here."""
    row = source.rows[pair]
    turns = [turn(m) for m in row["prompt"]] + [turn(m, loss=True) for m in row[side]]
    return ids.layout.encode(turns, ids.text, ids.vocabulary)


def learnt(batch: PreferenceBatch, answer: int) -> list[tuple[int, int, int, int]]:
    """Row, place, target and slot of every id of an answer that is learnt, by place."""
    columns = zip(
        *batch.at.tolist(), batch.targets.tolist(), batch.slots.tolist(), batch.answers.tolist(),
        strict=True,
    )  # fmt: skip
    return sorted((r, p, t, s) for r, p, t, s, a in columns if a == answer)


ORDER = [(2, "chosen"), (0, "chosen"), (2, "rejected"), (0, "rejected")]


@pytest.mark.parametrize("mask", ["audio", "none"])
def test_chosen_answers_come_first(mask: str, crafted: Path, ids: Ids) -> None:
    source = batches(crafted, ids, mask, shared_prompt=False)
    batch = source.collate([2, 0])
    assert batch.pairs == [2, 0] and len(batch.input_ids) == 4 and batch.forks is None
    for row, (pair, side) in enumerate(ORDER):
        stream = encoded(source, ids, pair, side)
        n = len(stream.ids) - 1
        assert batch.input_ids[row, :n].tolist() == stream.ids[:-1]
        assert (batch.input_ids[row, n:] == ids.vocabulary.pad).all()
        assert learnt(batch, row) == [
            (row, i, stream.ids[i + 1], stream.slots[i + 1])
            for i in range(n)
            if stream.slots[i + 1]
        ]


def test_a_pair_is_one_row_with_its_prompt_once(crafted: Path, ids: Ids) -> None:
    source = batches(crafted, ids, "none")
    batch = source.collate([2, 0])
    assert len(batch.input_ids) == 2 and batch.forks is not None
    for row, pair in enumerate([2, 0]):
        chosen, rejected = (encoded(source, ids, pair, side) for side in ("chosen", "rejected"))
        prompt, second = batch.forks[row].tolist()
        context = [turn(m) for m in source.rows[pair]["prompt"]]
        assert prompt == len(ids.layout.prompt(context, ids.text, ids.vocabulary))
        whole = chosen.ids[:-1] + rejected.ids[prompt:-1]
        assert second == len(chosen.ids) - 1
        assert batch.input_ids[row, : len(whole)].tolist() == whole
        assert (batch.input_ids[row, len(whole) :] == ids.vocabulary.pad).all()
        for answer, stream in ((row, chosen), (row + 2, rejected)):
            found = learnt(batch, answer)
            assert [(t, s) for _, _, t, s in found] == [
                (i, s) for i, s in zip(stream.ids, stream.slots, strict=True) if s
            ]
            begin = prompt if stream is chosen else second
            rest = [*range(begin, begin + len(found) - 1)]
            assert [(r, p) for r, p, *_ in found] == [(row, p) for p in [prompt - 1, *rest]]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shared", [True, False])
def test_the_mask_takes_out_its_kinds_alone(
    mask: str, shared: bool, crafted: Path, ids: Ids
) -> None:
    batch = batches(crafted, ids, mask, shared_prompt=shared).collate([0, 1, 2, 3])
    v = ids.vocabulary
    for place, target in enumerate(batch.targets.tolist()):
        kind = v.token_type(target)
        assert TOKEN_TYPES[int(batch.kinds[place])] == kind
        assert (place < batch.counted) is (kind not in MASKS[mask])
    assert {v.audio_start, v.audio_end, v.text_end, v.eot} <= set(batch.targets.tolist())
    counted = set(batch.targets[: batch.counted].tolist())
    if mask == "audio":
        assert v.eot in counted and max(counted) < v.text_tokens


def test_the_end_of_a_turn_is_text_even_as_a_marker(crafted: Path, ids: Ids) -> None:
    own = ids.vocabulary.marker_start + 3  # as where the base has none
    ids = replace(ids, vocabulary=replace(ids.vocabulary, eot=own))
    batch = batches(crafted, ids).collate([0])
    assert batch.targets[: batch.counted].tolist().count(own) == 2


def test_answers_with_the_same_ids_are_alike(crafted: Path, ids: Ids, tmp_path: Path) -> None:
    row = read_manifest(crafted / "pairs.jsonl")[0]
    said = turn(row["chosen"][0])
    other = message("assistant", said.text, turn(row["rejected"][0]).speech)
    write_manifest(tmp_path / "pairs.jsonl", [{**row, "rejected": [other]}, row])
    alike = batches(tmp_path, ids).collate([0, 1]).alike.tolist()
    assert alike[0][:3] == [1, 0, 0] and alike[1][:3] == [0, 0, 0]


@pytest.mark.parametrize("history", ["text", "audio", "none"])
def test_whole_dialogues_are_the_context_and_the_answers_alone_are_learned(
    crafted: Path, ids: Ids, tmp_path: Path, history: str
) -> None:
    ids = replace(ids, layout=replace(ids.layout, history=history))
    row, other = read_manifest(crafted / "pairs.jsonl")[:2]
    for part in row["prompt"][0]["content"]:
        part["text"] = "write"  # what is said in it, for a history of text
    before = [message("system", "write", []), *row["prompt"], *row["chosen"]]
    prompt = [*before, *other["prompt"]]
    long = {**row, "prompt": prompt, "chosen": other["chosen"]}
    write_manifest(tmp_path / "pairs.jsonl", [long])
    batch = batches(tmp_path, ids, shared_prompt=False).collate([0])
    turns = [turn(m) for m in prompt]
    for i, side in enumerate(("chosen", "rejected")):
        whole = [*turns, turn(long[side][0], loss=True)]
        stream = ids.layout.encode(whole, ids.text, ids.vocabulary)
        n = len(stream.ids) - 1
        context = len(ids.layout.prompt(turns, ids.text, ids.vocabulary)) - 1
        assert batch.input_ids[i, :n].tolist() == stream.ids[:-1]
        assert [(p, t, s) for _, p, t, s in learnt(batch, i)] == [
            (p, stream.ids[p + 1], stream.slots[p + 1]) for p in range(context, n)
        ]
    repeated = {**long, "chosen": [*prompt, *long["chosen"]]}  # a side may repeat the prompt
    write_manifest(tmp_path / "pairs.jsonl", [repeated])
    again = batches(tmp_path, ids, shared_prompt=False).collate([0])
    assert torch.equal(again.input_ids, batch.input_ids) and torch.equal(again.at, batch.at)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("kind", ["empty", "user", "prompt"])
def test_a_side_that_is_no_answer_is_refused(
    side: str, kind: str, crafted: Path, ids: Ids, tmp_path: Path
) -> None:
    row = read_manifest(crafted / "pairs.jsonl")[0]
    wrong = {"empty": [], "user": [message("user", "no", [])], "prompt": row["prompt"]}[kind]
    write_manifest(tmp_path / "pairs.jsonl", [{**row, side: wrong}])
    with pytest.raises(UsageError, match=f"{side} of the pair pair-0 must be messages") as caught:
        batches(tmp_path, ids)
    assert "\n" not in str(caught.value)


def test_an_epoch_shows_every_pair_once(crafted: Path, ids: Ids) -> None:
    source = batches(crafted, ids)
    epochs = [[*source.batch(2 * e).pairs, *source.batch(2 * e + 1).pairs] for e in range(6)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    assert len(batches(crafted, ids, batch=99).batch(0).pairs) == 4
    assert source.validation() == []


def test_errors_of_use(crafted: Path, ids: Ids, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mask=voice is not one of audio, none, text, linguistic"):
        batches(crafted, ids, mask="voice")
    with pytest.raises(UsageError, match="the pairs were made with tokenizers"):
        batches(crafted, replace(ids, tokenizer_hash="other"))
    write_manifest(tmp_path / "pairs.jsonl", [])
    with pytest.raises(UsageError, match="holds no pair"):
        batches(tmp_path, ids)
    with pytest.raises(UsageError, match="does not exist"):
        batches(tmp_path / "nowhere", ids)


def test_sampled_pairs_are_valid_rows_and_reproducible(chain: Chain, tmp_path: Path) -> None:
    rows = read_manifest(chain / "pairs" / "pairs.jsonl")
    assert 1 <= len(rows) <= 5
    assert not validate(manifest=chain / "pairs" / "pairs.jsonl")
    meta = read_json(chain / "pairs" / "meta.json")
    assert meta["parents"] == {
        "model": tree_hash(f"{chain / 'sft_1'}/model"),
        "corpus": tree_hash(chain / "corpus"),
        "tokens": tree_hash(chain / "tokens"),
    }
    again = tmp_path / "pairs"
    pairs(
        model=f"{chain / 'sft_1'}/model",
        corpus=str(chain / "corpus"),
        tokens=str(chain / "tokens"),
        out=str(again),
        prompts=5,
        samples=1,
    )
    # Not the audio: the most likely codes of an untrained model are ties but for rounding.
    for row, same in zip(rows, read_manifest(again / "pairs.jsonl"), strict=True):
        assert (row["id"], row["prompt"], row["reason"]) == (
            *(same["id"], same["prompt"], same["reason"]),
        )
        assert turn(row["rejected"][0]).text == turn(same["rejected"][0]).text
    corpus = Corpus(chain / "corpus")
    answers = {f"pair-{row['id']}": answer_text(row) for row in corpus.rows("train")}
    for row in rows:  # a model of six steps is never right: the corpus' own answer is chosen
        assert turn(row["chosen"][0]).text == answers[row["id"]] != turn(row["rejected"][0]).text


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, chain: Chain) -> list[list[str]]:
    """Answers by script instead of by sampling: one list of texts a question."""
    script: list[list[str]] = []
    ids = Ids.load(chain / "init")

    def answer(self: Decoder, prompt: list[int], **options: object) -> list[int]:
        begun = options.get("begun")
        if begun:
            v = ids.vocabulary
            return [*begun, v.audio_start, v.audio_end, v.eot]  # type: ignore[misc]
        return [*ids.text.encode(script[0].pop(0)), ids.vocabulary.text_end]

    monkeypatch.setattr(Decoder, "answer", answer)
    return script


def ask(chain: Chain, out: Path, **options: int) -> None:
    pairs(
        model=f"{chain / 'sft_1'}/model",
        corpus=str(chain / "corpus"),
        tokens=str(chain / "tokens"),
        out=str(out),
        prompts=1,
        **options,
    )


def test_a_right_sample_is_chosen_and_a_wrong_one_rejected(
    chain: Chain, scripted: list[list[str]], tmp_path: Path
) -> None:
    first = read_manifest(chain / "pairs" / "pairs.jsonl")[0]["id"].removeprefix("pair-")
    right = next(answer_text(r) for r in Corpus(chain / "corpus").rows("train") if r["id"] == first)
    scripted.append(["banana is", right, right])
    ask(chain, tmp_path / "pairs", samples=3)
    (row,) = read_manifest(tmp_path / "pairs" / "pairs.jsonl")
    assert turn(row["chosen"][0]).text == right
    assert turn(row["rejected"][0]).text == "banana is"
    assert row["reason"].endswith("2 of 3 samples were right")
    scripted[0][:] = [right, right]
    with pytest.raises(UsageError, match="1 questions brought no wrong answer with a text"):
        ask(chain, tmp_path / "none", samples=2)
    assert not (tmp_path / "none").exists()


def test_a_wrong_sample_without_text_is_not_rejected(
    chain: Chain, scripted: list[list[str]], tmp_path: Path
) -> None:
    scripted.append(["", "banana is", ""])
    ask(chain, tmp_path / "pairs", samples=3)
    (row,) = read_manifest(tmp_path / "pairs" / "pairs.jsonl")
    assert turn(row["rejected"][0]).text == "banana is"
    scripted[0][:] = ["", ""]
    with pytest.raises(UsageError, match="brought no wrong answer with a text"):
        ask(chain, tmp_path / "none", samples=2)


def test_a_damaged_model_is_refused(chain: Chain, tmp_path: Path) -> None:
    copy = shutil.copytree(chain / "sft_1", tmp_path / "sft_1") / "model"
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match="is incomplete: tokenizer.json is missing"):
        pairs(
            model=str(copy),
            corpus=str(chain / "corpus"),
            tokens=str(chain / "tokens"),
            out=str(tmp_path / "pairs"),
        )
