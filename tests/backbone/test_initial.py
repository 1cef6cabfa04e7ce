"""From-scratch weights depend on the seed and the names alone."""

import json
from pathlib import Path

import pytest
import torch

from aqaa.backbone import initial
from aqaa.backbone.initial import initialise, write_initial
from aqaa.backbone.loading import load_backbone
from aqaa.backbone.step1 import Step1Config
from aqaa.errors import UsageError
from aqaa.lineage import tokenizer_hash
from aqaa.storage import load_tensors, verify_manifest, write_json
from tests.golden.make import WORDS, dual, ids

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_attention_groups": 2,
}
BOOKS = {
    "linguistic": torch.randn(1024, 4, generator=torch.Generator().manual_seed(1)),
    "semantic": torch.randn(4096, 4, generator=torch.Generator().manual_seed(2)),
}
ROWS = ids().vocabulary.rows


def write(folder: Path, *, tied: bool = False, **change: object) -> dict[str, torch.Tensor]:
    config = Step1Config(vocab_size=ROWS, tie_word_embeddings=tied, **SIZES)
    write_initial(folder, config=config, ids=ids(), **change)  # type: ignore[arg-type]
    return load_tensors(folder / "model.safetensors")


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.manual_seed(len(name))
        torch.randn(3)  # what was drawn elsewhere does not matter
        write(tmp_path / name, seed=seed, codebooks=BOOKS)
    a, b, c = (verify_manifest(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c


def test_each_tensor_is_its_own(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a"), write(tmp_path / "b", seed=1)
    matrices = [k for k, v in one.items() if v.dim() == 2]
    flat = [one[k].flatten()[:64] for k in matrices]
    assert len({tuple(row.tolist()) for row in flat}) == len(matrices)
    for name in matrices:
        assert not torch.equal(one[name], two[name])
        assert one[name].mean().abs() < 0.05
    assert all((v == 1).all() for k, v in one.items() if v.dim() == 1)


def test_a_deeper_model_begins_with_the_same_layers(tmp_path: Path) -> None:
    shallow = write(tmp_path / "a")
    config = Step1Config(vocab_size=ROWS, **{**SIZES, "num_hidden_layers": 3})
    write_initial(tmp_path / "b", config=config, ids=ids())
    deep = load_tensors(tmp_path / "b" / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(shallow[name], deep[name])


def test_audio_rows_keep_the_codebooks_distances(tmp_path: Path) -> None:
    table = write(tmp_path / "a", codebooks=BOOKS, tied=True)["model.embed_tokens.weight"]
    plain = write(tmp_path / "b", tied=True)["model.embed_tokens.weight"]
    vocabulary = ids().vocabulary
    starts = {"linguistic": vocabulary.linguistic_start, "semantic": vocabulary.semantic_start}
    for book, start in starts.items():
        pairs = torch.stack(
            [torch.pdist(BOOKS[book][:200]), torch.pdist(table[start : start + 200])]
        )
        assert torch.corrcoef(pairs)[0, 1] > 0.75
        random = torch.stack([pairs[0], torch.pdist(plain[start : start + 200])])
        assert torch.corrcoef(random)[0, 1].abs() < 0.2
    others = [*range(vocabulary.text_tokens), *range(vocabulary.marker_start, ROWS)]
    assert torch.equal(table[others], plain[others])
    assert float(table.std()) == pytest.approx(float(plain.std()), rel=0.1)


def test_a_tied_table_is_written_once_and_loads(tmp_path: Path) -> None:
    assert "lm_head.weight" not in write(tmp_path / "a", tied=True)
    assert "lm_head.weight" in write(tmp_path / "b", tied=False)
    loaded = load_backbone(tmp_path / "a")
    assert loaded.table is loaded.model.model.embed_tokens.weight


def test_a_large_model_is_written_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write(tmp_path / "a")
    monkeypatch.setattr(initial, "SHARD_BYTES", 100_000)
    config = Step1Config(vocab_size=ROWS, **SIZES)
    write_initial(tmp_path / "b", config=config, ids=ids())
    assert len(list((tmp_path / "b").glob("model-*-of-00003.safetensors"))) == 3
    verify_manifest(tmp_path / "b")
    state = load_backbone(tmp_path / "b").model.state_dict()
    assert state.keys() == whole.keys()
    assert all(torch.equal(state[name], whole[name]) for name in whole)


def test_rows_must_fit_the_ids(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"vocab_size 99 != {ROWS} rows"):
        write_initial(tmp_path / "a", config=Step1Config(vocab_size=99, **SIZES), ids=ids())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def parents(tmp_path: Path) -> Path:
    dual().save(tmp_path / "tokenizer")
    write_json(tmp_path / "domain.json", {"words": WORDS})
    return tmp_path


def _init(folder: Path, **change: object) -> None:
    settings = {
        "out": str(folder / "init"),
        "codes": str(folder / "tokenizer"),
        "texts": str(folder / "domain.json"),
        "backbone": SIZES,
        "layout": {"text_block": 6, "audio_block": 50},
    }
    initialise(**{**settings, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["words", "bytes"])
def test_init_writes_a_folder_that_loads(text: str, parents: Path) -> None:
    _init(parents, text=text)
    loaded = load_backbone(parents / "init")
    assert loaded.ids.tokenizer_hash == tokenizer_hash(parents / "tokenizer")
    assert loaded.ids.layout.audio_block == 50
    assert loaded.ids.text.size == (5 + 3 + 6 + 46 if text == "words" else 5 + 256)
    state = load_tensors(parents / "tokenizer" / "semantic" / "model.safetensors")
    start = loaded.ids.vocabulary.semantic_start
    vectors, rows = state["codebook.vectors"][:100], loaded.table.detach()[start : start + 100]
    both = torch.stack([torch.pdist(vectors), torch.pdist(rows)])
    assert torch.corrcoef(both)[0, 1] > 0.75


def test_init_refuses_what_it_cannot_use(parents: Path) -> None:
    with pytest.raises(UsageError, match="text=letters is neither words nor bytes"):
        _init(parents, text="letters")
    with pytest.raises(UsageError, match="domain.json holds no list of words"):
        (parents / "domain.json").write_text(json.dumps({"answers": []}))
        _init(parents)
    with pytest.raises(UsageError, match="nothing.json does not exist"):
        _init(parents, texts=str(parents / "nothing.json"))
    write_json(parents / "domain.json", {"words": WORDS})
    with pytest.raises(UsageError, match="does not hold both speech tokenizers"):
        _init(parents, codes=str(parents))
    assert not (parents / "init").exists()
