"""Lengths are those of the encoded documents; they are measured once and never taken stale."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aqaa.backbone.loading import Ids
from aqaa.data import kept, lengths
from aqaa.data.corpus import Corpus
from aqaa.data.lengths import about_lengths, document_lengths
from aqaa.data.manifest import write_manifest
from aqaa.data.tasks import TASKS, Materials
from aqaa.data.token_store import TokenStore, write_store
from aqaa.signals import CodePair
from aqaa.storage import write_json
from aqaa.storage import write_manifest as seal
from tests.conftest import Chain


@pytest.fixture
def store(chain: Chain, tmp_path: Path) -> TokenStore:
    """The chain's store, where something can be laid beside it."""
    (tmp_path / "tokens").symlink_to(chain / "tokens")
    return TokenStore(tmp_path / "tokens")


def measure(chain: Chain, store: TokenStore, ids: Ids, *tasks: str) -> dict[str, np.ndarray]:
    rows = Materials(Corpus(chain / "corpus"), store, "train")
    return document_lengths(rows, tasks, ids=ids, store=store, split="train")


def test_they_are_those_of_the_documents(chain: Chain, store: TokenStore) -> None:
    ids = Ids.load(chain / "init")
    found = measure(chain, store, ids, *TASKS)
    for place, material in enumerate(Materials(Corpus(chain / "corpus"), store, "train")):
        for task, build in TASKS.items():
            whole = ids.layout.encode(build(material), ids.text, ids.vocabulary).ids
            assert found[task][place] == len(whole) - 1


def test_they_are_kept_for_what_they_were_measured_on(
    chain: Chain, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = Ids.load(chain / "init")
    monkeypatch.setattr(kept, "PATIENCE_ROWS", 1)
    first = measure(chain, store, ids, "tts", "asr")
    other = replace(ids, layout=replace(ids.layout, question_books="linguistic"))
    assert (measure(chain, store, other, "tts", "asr")["asr"] < first["asr"]).all()
    monkeypatch.setattr(lengths, "_count", None)  # were it measured again, this would be called
    again = measure(chain, store, ids, "asr", "tts")
    assert all(np.array_equal(again[task], first[task]) for task in ("asr", "tts"))


def test_what_is_sorted_by_grows_with_the_documents(chain: Chain, store: TokenStore) -> None:
    rows = Materials(Corpus(chain / "corpus"), store, "train")
    ids = Ids.load(chain / "init")
    near = about_lengths(rows, ["aqtaa", "tqta"], ids=ids, store=store, split="train")
    for place, material in enumerate(rows):
        codes = [p for turn in (material.question, material.answer) for p in turn.speech]
        count = sum(len(pair.linguistic) + len(pair.semantic) for pair in codes)
        assert near["aqtaa"][place] == count + len(material.answer.text.split())
        assert near["tqta"][place] < near["aqtaa"][place]


def test_a_large_corpus_stays_on_disk(chain: Chain, tmp_path: Path) -> None:
    """20 MB of codes and rows cost a reader a tenth of that."""
    rows, codes = 2_000, 1_250
    pair = CodePair([7] * (2 * codes // 5), [9] * (3 * codes // 5))
    (row,) = Corpus(chain / "corpus").rows("train")[:1]
    (tmp_path / "corpus").mkdir()
    write_json(tmp_path / "corpus" / "domain.json", {})
    many = [{**row, "id": f"r{i}", "note": "x" * 5_000} for i in range(rows)]
    write_manifest(tmp_path / "corpus" / "train.jsonl", many)
    seal(tmp_path / "corpus")
    answer = f"answers/{row['meta']['answer_id']}"
    (tmp_path / "tokens").mkdir()
    store_codes = {answer: pair, **{f"train/r{i}": pair for i in range(rows)}}
    meta = {"tokenizer_hash": "t", "corpus_hash": "c", "question_books": "both"}
    write_store(tmp_path / "tokens", store_codes, meta)
    ids = Ids.load(chain / "init")
    store = TokenStore(tmp_path / "tokens")
    tracemalloc.start()
    materials = Materials(Corpus(tmp_path / "corpus"), store, "train")
    found = document_lengths(materials, ["asr"], ids=ids, store=store, split="train")
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found["asr"]) == rows and found["asr"].min() > codes
    assert peak < 2_000_000
