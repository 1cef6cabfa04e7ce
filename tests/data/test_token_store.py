"""The token store: every clip under its key, in flat files and in Arrow."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from aqaa.backbone.loading import Ids
from aqaa.data.corpus import SPLITS, Corpus, question_part
from aqaa.data.dialogues import DialogueBatches
from aqaa.data.token_store import TokenStore
from aqaa.data.tokenize import tokenize
from aqaa.data.voice import FlowBatches
from aqaa.errors import UsageError
from aqaa.evaluation.pairs import pairs
from aqaa.lineage import tokenizer_hash
from aqaa.signals import CodePair
from aqaa.storage import read_json, tree_hash, verify_manifest, write_json, write_manifest
from aqaa.tokenizer.dual import DualTokenizer
from tests.conftest import Chain


@pytest.fixture(scope="module")
def corpus(chain: Chain) -> Corpus:
    return Corpus(chain / "corpus")


@pytest.fixture(scope="module")
def store(chain: Chain) -> TokenStore:
    return TokenStore(chain / "tokens")


def models(chain: Chain) -> dict[str, str]:
    return {b: f"{chain.folder}/tokenizer_{b}/model" for b in ("linguistic", "semantic")}


def test_there_is_one_key_for_every_clip(store: TokenStore, corpus: Corpus) -> None:
    keys = {f"answers/{key}" for key in corpus.answers}
    keys |= {f"{split}/{row['id']}" for split in SPLITS for row in corpus.rows(split)}
    assert set(store.keys()) == keys and len(store.keys()) == len(keys)


def test_codes_are_those_of_the_tokenizers(store: TokenStore, corpus: Corpus) -> None:
    dual = DualTokenizer.load(store.tokenizer)
    for split in SPLITS:
        row = corpus.rows(split)[-1]
        samples = corpus.samples(question_part(row))
        pair = store[f"{split}/{row['id']}"]
        assert pair.groups == len(samples) // 1920 > 0
        assert (len(pair.linguistic), len(pair.semantic)) == (2 * pair.groups, 3 * pair.groups)
        # The store's mels are kept in half precision, so a code on an edge may fall over.
        alone = dual.encode(samples)
        same = sum(a == b for a, b in zip(pair.linguistic, alone.linguistic, strict=True))
        assert same >= 0.9 * len(pair.linguistic)


def test_the_arrow_table_holds_the_same(store: TokenStore) -> None:
    from datasets import load_from_disk

    table = load_from_disk(str(store.folder / "arrow"))
    assert table.column_names == ["key", "linguistic", "semantic"]
    assert [row["key"] for row in table] == store.keys()
    for row in table:
        assert CodePair(row["linguistic"], row["semantic"]) == store[row["key"]]


def test_the_record_counts_the_codes_and_names_the_parents(
    store: TokenStore, corpus: Corpus, chain: Chain
) -> None:
    assert verify_manifest(store.folder)
    for book in ("linguistic", "semantic"):
        seen = Counter(code for key in store.keys() for code in getattr(store[key], book))
        usage = store.meta["usage"][book]
        assert {code: n for code, n in enumerate(usage) if n} == dict(seen)
    assert store.meta["corpus_hash"] == tree_hash(corpus.folder)
    assert store.tokenizer_hash == tokenizer_hash(store.tokenizer)
    assert (store.tokenizer / "linguistic/model.safetensors").read_bytes() == Path(
        models(chain)["linguistic"], "model.safetensors"
    ).read_bytes()


def test_questions_may_carry_the_linguistic_book_alone(
    chain: Chain, store: TokenStore, tmp_path: Path
) -> None:
    out = tmp_path / "tokens"
    tokenize(
        corpus=str(chain / "corpus"), **models(chain), out=str(out), question_books="linguistic"
    )
    lean = TokenStore(out)
    assert lean.meta["question_books"] == "linguistic"
    for key in store.keys():
        whole = store[key]
        bare = whole if key.startswith("answers/") else CodePair(whole.linguistic, [])
        assert lean[key] == bare


def test_errors_of_use(chain: Chain, store: TokenStore, tmp_path: Path) -> None:
    corpus, out = str(chain / "corpus"), str(tmp_path / "out")
    with pytest.raises(UsageError, match="holds no codes of train/nobody: tokenize that corpus"):
        store["train/nobody"]
    with pytest.raises(UsageError, match="question_books=all is neither both nor linguistic"):
        tokenize(corpus=corpus, **models(chain), out=out, question_books="all")
    swapped = dict(zip(("semantic", "linguistic"), models(chain).values(), strict=True))
    with pytest.raises(UsageError, match="the linguistic tokenizer was given a semantic one"):
        tokenize(corpus=corpus, **swapped, out=out)
    with pytest.raises(UsageError, match="does not exist: run the stage that makes it first"):
        tokenize(corpus=corpus, linguistic="nowhere", semantic="nowhere", out=out)
    assert not Path(out).exists()


@pytest.mark.parametrize("damaged", ["corpus", "linguistic"])
def test_damaged_parents_are_refused(chain: Chain, damaged: str, tmp_path: Path) -> None:
    parents = {"corpus": str(chain / "corpus"), **models(chain)}
    copy = shutil.copytree(parents[damaged], tmp_path / "copy")
    path = next(copy.rglob("*.wav" if damaged == "corpus" else "*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is damaged: its SHA-256 differs"):
        tokenize(**{**parents, damaged: str(copy)}, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_corpus_made_again_does_not_fit_old_codes(
    chain: Chain, store: TokenStore, tmp_path: Path
) -> None:
    copy = shutil.copytree(chain / "corpus", tmp_path / "corpus")
    store.check_corpus(Corpus(copy))  # content counts, not its place
    (copy / "train.jsonl").write_text("")
    write_manifest(copy)
    folders = {"corpus": str(copy), "tokens": str(store.folder)}
    ids = Ids.load(chain / "init")
    made = DialogueBatches(**folders, tasks={"asr": {"share": 1}}, steps=1)
    users: list[Callable[[], object]] = [
        lambda: made.bind(ids),
        lambda: FlowBatches(**folders),
        lambda: pairs(**folders, model=f"{chain / 'sft_1'}/model", out=str(tmp_path / "pairs")),
    ]
    for use in users:
        with pytest.raises(UsageError, match="holds codes of another corpus than") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "pairs").exists()


def test_a_store_whose_keys_do_not_fit_is_refused(store: TokenStore, tmp_path: Path) -> None:
    copy = tmp_path / "tokens"
    shutil.copytree(store.folder, copy)
    write_json(copy / "keys.json", store.keys()[:-1])
    wrong = rf"keys.json names \d+ clips, linguistic.idx has {len(store.keys())}: the store is"
    with pytest.raises(UsageError, match=wrong):
        TokenStore(copy)


def test_keys_are_plain_json(store: TokenStore) -> None:
    assert read_json(store.folder / "keys.json") == store.keys()
