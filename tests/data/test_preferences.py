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
from aqaa.data.preferences import PreferenceBatches, message, turn
from aqaa.data.token_store import TokenStore
from aqaa.data.validate import validate
from aqaa.errors import UsageError
from aqaa.evaluation.pairs import pairs
from aqaa.signals import CodePair, Turn
from aqaa.storage import read_json, tree_hash
from aqaa.stream import Slot
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


def batches(folder: Path, ids: Ids, mask: str = "audio", batch: int = 2) -> PreferenceBatches:
    source = PreferenceBatches(pairs=str(folder), batch=batch, mask=mask)
    source.bind(ids)
    return source


def test_a_message_is_a_turn_and_back() -> None:
    pair = CodePair([1, 2], [3, 4, 5])
    for role in ("human", "assistant"):
        there = message("user" if role == "human" else role, "two words", [pair, pair])
        assert turn(there) == Turn(role, "two words", [pair, pair])  # type: ignore[arg-type]
    assert turn(message("assistant", "", [pair]), loss=True).loss


def test_chosen_answers_come_first(crafted: Path, ids: Ids) -> None:
    source = batches(crafted, ids)
    batch = source.collate([2, 0])
    assert batch.pairs == [2, 0] and len(batch.input_ids) == 4
    for row, (pair, side) in enumerate(
        [(2, "chosen"), (0, "chosen"), (2, "rejected"), (0, "rejected")]
    ):
        turns = [turn(source.rows[pair]["prompt"][0])]
        turns.append(turn(source.rows[pair][side][0], loss=True))
        stream = ids.layout.encode(turns, ids.text, ids.vocabulary)
        n = len(stream.ids) - 1
        assert batch.input_ids[row, :n].tolist() == stream.ids[:-1]
        assert batch.targets[row, :n].tolist() == stream.ids[1:]
        assert batch.slots[row, :n].tolist() == stream.slots[1:]
        assert (batch.slots[row, n:] == 0).all()


def test_the_mask_takes_out_audio_ids_and_markers_alone(crafted: Path, ids: Ids) -> None:
    batch = batches(crafted, ids).collate([0, 1, 2, 3])
    v = ids.vocabulary
    for target, keep in zip(batch.targets.flatten(), batch.keep.flatten(), strict=True):
        token = int(target)
        assert bool(keep) is (v.token_type(token) == "text")
    answered = set(batch.targets[batch.slots > 0].tolist())
    assert {v.audio_start, v.audio_end, v.text_end, v.eot} <= answered
    kept = set(batch.targets[(batch.keep > 0) & (batch.slots > 0)].tolist())
    assert v.eot in kept and max(kept) < v.text_tokens
    everything = batches(crafted, ids, mask="none").collate([0, 1])
    assert (everything.keep == 1).all()


def test_whole_dialogues_are_the_context_and_the_answers_alone_are_learned(
    crafted: Path, ids: Ids, tmp_path: Path
) -> None:
    row, other = read_manifest(crafted / "pairs.jsonl")[:2]
    before = [message("system", "write", []), *row["prompt"], *row["chosen"]]
    prompt = [*before, *other["prompt"]]
    long = {**row, "prompt": prompt, "chosen": other["chosen"]}
    write_manifest(tmp_path / "pairs.jsonl", [long])
    batch = batches(tmp_path, ids).collate([0])
    turns = [turn(m) for m in prompt]
    for i, side in enumerate(("chosen", "rejected")):
        whole = [*turns, turn(long[side][0], loss=True)]
        stream = ids.layout.encode(whole, ids.text, ids.vocabulary)
        n = len(stream.ids) - 1
        assert batch.targets[i, :n].tolist() == stream.ids[1:]
        assert batch.slots[i, :n].tolist() == stream.slots[1:]
        context = len(ids.layout.prompt(turns, ids.text, ids.vocabulary)) - 1
        assert not batch.slots[i, :context].any() and batch.slots[i, context:n].all()
    repeated = {**long, "chosen": [*prompt, *long["chosen"]]}  # a side may repeat the prompt
    write_manifest(tmp_path / "pairs.jsonl", [repeated])
    assert torch.equal(batches(tmp_path, ids).collate([0]).targets, batch.targets)


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
    with pytest.raises(UsageError, match="mask=text is neither audio nor none"):
        batches(crafted, ids, mask="text")
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


def test_slots_of_padding_never_count(crafted: Path, ids: Ids) -> None:
    batch = batches(crafted, ids).collate([0, 1, 2, 3])
    assert not (batch.slots[batch.input_ids == ids.vocabulary.pad] != Slot.NONE).any()
    assert torch.equal(batch.keep, batch.keep.bool().float())
