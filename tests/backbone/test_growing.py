"""A base model grows audio ids: what it could it still can, and it trains as any backbone does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from aqaa.backbone.growing import grow
from aqaa.backbone.initial import initialise
from aqaa.backbone.loading import load_backbone
from aqaa.backbone.shards import INDEX, read_tensors
from aqaa.backbone.sizes import parameters
from aqaa.backbone.step1 import AutoModelForCausalLM
from aqaa.backbone.table import grown
from aqaa.data.collate import Document, packed, padded
from aqaa.errors import UsageError
from aqaa.signals import CodePair, Turn
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.stages.sft import Sft
from aqaa.storage import verify_manifest
from aqaa.stream import StreamLayout
from aqaa.vocabulary import Vocabulary
from tests.backbone.test_initial import BOOKS
from tests.golden.make import dual

ROWS = 300
SPECIALS = {
    "qwen3": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama": ["<s>", "</s>"],
}
SMALL = {
    "vocab_size": ROWS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = torch.arange(22).reshape(2, 11) * 13 % ROWS


def write_text_ids(folder: Path, specials: list[str]) -> None:
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))


def base(folder: Path, kind: str, **change: Any) -> Any:
    """A small Qwen3 with a tied table, or a small Llama in bfloat16, untied, in shards."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    settings = {**SMALL, "tie_word_embeddings": kind == "qwen3", **change}
    if kind == "qwen3":
        model: Any = Qwen3ForCausalLM(Qwen3Config(head_dim=8, bos_token_id=256, **settings))
        model.save_pretrained(folder)
        told = {"bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
    else:
        model = LlamaForCausalLM(LlamaConfig(**settings)).bfloat16()
        model.save_pretrained(folder, max_shard_size="12KB")
        (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    write_text_ids(folder, SPECIALS[kind])
    return model.eval()


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(kind, old model, grown folder)."""
    folder = tmp_path_factory.mktemp(request.param)
    model = base(folder / "base", request.param)
    sharded = {} if request.param == "qwen3" else {"shard_bytes": 100_000}
    grow(
        folder / "base", folder / "grown", layout=StreamLayout(), tokenizer_hash="ab-cd",
        codebooks=BOOKS, **sharded,
    )  # fmt: skip
    return request.param, model, folder / "grown"


def test_the_old_logits_are_unchanged(pair: Any) -> None:
    kind, old, folder = pair
    verify_manifest(folder)
    new = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(new) is type(old)
    assert new.config.architectures == [type(old).__name__]
    assert new.dtype == (torch.float32 if kind == "qwen3" else torch.bfloat16)
    with torch.no_grad():
        before, after = old(IDS).logits, new(IDS).logits
    assert after.shape[2] == 5440  # 300 + 5120 + 3 markers and up to 4 more, in whole 64
    torch.testing.assert_close(after[..., :ROWS], before, rtol=0, atol=1e-6)
    tied = new.lm_head.weight is new.model.embed_tokens.weight
    assert tied == new.config.tie_word_embeddings == (kind == "qwen3")
    assert (folder / INDEX).is_file() == (kind == "llama")


def test_every_old_tensor_keeps_its_bytes(pair: Any) -> None:
    _, old, folder = pair
    stored = dict(read_tensors(folder))
    for name, tensor in old.state_dict().items():
        if name == "lm_head.weight" and old.config.tie_word_embeddings:
            assert name not in stored
        else:
            assert torch.equal(stored[name][: len(tensor)], tensor)
            assert stored[name].dtype == tensor.dtype
    assert sum(t.numel() for t in stored.values()) == parameters(load_backbone(folder).model.config)


def test_the_frame_takes_the_specials_of_the_base(pair: Any) -> None:
    kind, _, folder = pair
    loaded = load_backbone(folder)
    v = loaded.ids.vocabulary
    assert (v.text_tokens, v.linguistic_start, v.marker_start) == (ROWS, ROWS, ROWS + 5120)
    own = v.marker_start + 3
    expected = (256, 256, 258, 257) if kind == "qwen3" else (own, 256, 257, own + 1)
    assert (v.pad, v.bos, v.eot, v.bot) == expected
    config = loaded.model.config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == expected[:3]
    text = loaded.ids.text
    for special in SPECIALS[kind]:  # text never ends a turn
        assert not set(text.encode(f"a{special}b")) & set(range(256, 259))
        assert text.decode(text.encode(f"a{special}b")) == f"a{special}b"
    assert text.decode([*text.encode("hé"), v.eot, v.bos]) == "hé"


def test_loaded_it_is_a_backbone_of_ours(pair: Any) -> None:
    kind, _, folder = pair
    loaded = load_backbone(folder)
    assert loaded.model.dtype == torch.float32
    assert (loaded.ids.tokenizer_hash, loaded.ids.model_type) == ("ab-cd", kind)
    with torch.no_grad():
        found = loaded.hidden(IDS).last_hidden_state @ loaded.table.T
        torch.testing.assert_close(found, loaded.model(IDS).logits, rtol=0, atol=1e-5)
    assert load_backbone(folder, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_packed_documents_do_not_know_each_other(pair: Any) -> None:
    loaded = load_backbone(pair[2])
    loaded.model.train()
    row, positions = IDS[:1], torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4]])
    packed = loaded.hidden(row, position_ids=positions).last_hidden_state
    for inside in (slice(0, 4), slice(4, 6), slice(6, 11)):
        alone = loaded.hidden(row[:, inside]).last_hidden_state
        torch.testing.assert_close(packed[:, inside], alone, rtol=0, atol=1e-5)
        changed = row.clone()
        changed[:, inside] = (changed[:, inside] + 1) % ROWS
        other = loaded.hidden(changed, position_ids=positions).last_hidden_state
        same = (other == packed).all(-1)[0]
        same[inside] = ~same[inside]
        assert same.all()


def test_it_trains_a_step(pair: Any, attach: Callable[[Any, Any], Any]) -> None:
    class Source:
        names = ("aqtaa",)

        def bind(self, ids: Any) -> None:
            self.ids = ids

    settings = OptimizerSettings(lr=1e-3)
    stage = attach(Sft(model=str(pair[2]), optimizer=settings), source := Source())
    stage.decoder.gradient_checkpointing_enable()
    ids = source.ids
    question = Turn("human", "", [CodePair(list(range(6)), list(range(9)))])
    answer = Turn("assistant", "hello", [CodePair([1, 2, 3, 4], [7, 8, 9, 10, 11, 12])], loss=True)
    stream = ids.layout.encode((question, answer), ids.text, ids.vocabulary)
    assert stream.ids[-1] == ids.vocabulary.eot
    document = Document(0, np.array(stream.ids), np.array(stream.slots))
    batch = packed([[document, document]], 200, pad=ids.vocabulary.pad)
    alone = float(stage._loss(padded("aqtaa", [document], pad=0), count=False).detach())
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.5)
    losses = []
    for _ in range(2):
        loss = stage._loss(batch, count=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(alone, rel=1e-5)
    assert losses[1] < losses[0]


def test_new_rows_are_like_the_old() -> None:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(6, 6, generator=generator)
    old = torch.randn(4000, 6, generator=generator) @ mixing + 2
    vocabulary = Vocabulary.behind(4000, {"pad": 0, "bos": 1, "eot": 2, "bot": 3})
    table = grown(old, name="t", vocabulary=vocabulary)
    assert torch.equal(table[:4000], old)
    new = table[4000:]
    spread = float(old.std())
    assert float((new.mean(0) - old.mean(0)).abs().max()) < 0.1 * spread
    assert float((new.T.cov() - old.T.cov()).abs().max()) < 0.1 * spread**2
    assert len(new.unique(dim=0)) == len(new)
    assert torch.equal(table, grown(old, name="t", vocabulary=vocabulary))
    assert not torch.equal(table, grown(old, name="u", vocabulary=vocabulary))
    assert not torch.equal(table, grown(old, name="t", vocabulary=vocabulary, seed=1))


def test_audio_rows_keep_the_codebooks_distances_at_the_old_scale() -> None:
    old = 0.02 * torch.randn(500, 16, generator=torch.Generator().manual_seed(4)) + 0.1
    vocabulary = Vocabulary.behind(500, {"pad": 0, "bos": 1, "eot": 2, "bot": 3})
    table = grown(old, name="t", vocabulary=vocabulary, codebooks=BOOKS)
    for book, start in (("linguistic", 500), ("semantic", 1524)):
        rows = table[start : start + 1000]
        pairs = torch.stack([torch.pdist(BOOKS[book][:200]), torch.pdist(rows[:200])])
        assert torch.corrcoef(pairs)[0, 1] > 0.75
        assert float((rows - 0.1).square().mean().sqrt()) == pytest.approx(0.02, rel=0.15)
        assert float(rows.mean()) == pytest.approx(0.1, abs=0.005)


def _edit(folder: Path, **change: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    kept = {k: v for k, v in {**config, **change}.items() if v != "gone"}
    (folder / "config.json").write_text(json.dumps(kept))


def _add_words(folder: Path) -> None:
    write_text_ids(folder, [f"<{i}>" for i in range(ROWS - 255)])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no config.json: give the folder of a cau"),
        (lambda f: _edit(f, model_type="stranger"), "is no causal language model we know"),
        (lambda f: _edit(f, model_type="vit"), "is no causal language model we know"),
        (lambda f: _edit(f, logit_scale=0.5), "has logit_scale, which our loss head does not"),
        (lambda f: (f / "model.safetensors").unlink(), "weights come as safetensors only"),
        (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer.json"),
        (lambda f: (f / "aqaa.json").touch(), "has audio ids already: train it as parents.model="),
        (_add_words, "301 text ids do not fit 300 rows"),
        (lambda f: _edit(f, tie_word_embeddings=False), "no tensor lm_head.weight, but its config"),
    ],
)
def test_an_unfit_base_is_a_sentence(damage: Any, sentence: str, tmp_path: Path) -> None:
    base(tmp_path / "base", "qwen3")
    damage(tmp_path / "base")
    with pytest.raises(UsageError, match=sentence) as info:
        grow(tmp_path / "base", tmp_path / "out", layout=StreamLayout(), tokenizer_hash="")
    assert "\n" not in str(info.value)
    assert str(tmp_path / "base") in str(info.value)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_head_in_the_files_counts_more_than_the_config(tmp_path: Path) -> None:
    base(tmp_path / "base", "llama")
    _edit(tmp_path / "base", tie_word_embeddings=True)
    grow(tmp_path / "base", tmp_path / "out", layout=StreamLayout(), tokenizer_hash="")
    loaded = load_backbone(tmp_path / "out").model
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
    assert not loaded.config.tie_word_embeddings


def test_a_config_that_says_nothing_of_tying_is_tied_without_a_head(tmp_path: Path) -> None:
    base(tmp_path / "base", "qwen3")
    _edit(tmp_path / "base", tie_word_embeddings="gone")
    grow(tmp_path / "base", tmp_path / "out", layout=StreamLayout(), tokenizer_hash="")
    assert load_backbone(tmp_path / "out").model.config.tie_word_embeddings


def test_init_grows_a_base(tmp_path: Path) -> None:
    base(tmp_path / "base", "qwen3")
    dual().save(tmp_path / "codes")
    initialise(
        out=str(tmp_path / "init"),
        codes=str(tmp_path / "codes"),
        texts="nowhere",
        base=str(tmp_path / "base"),
        backbone={},
        layout={"text_block": 6, "audio_block": 50},
        row_multiple=100,
    )
    loaded = load_backbone(tmp_path / "init")
    assert loaded.ids.layout == StreamLayout(6, 50)
    assert loaded.table.shape == (5500, 16)
    codes = dict(read_tensors(tmp_path / "codes" / "semantic"))["codebook.vectors"][:100]
    rows: Tensor = loaded.table.detach()[ROWS + 1024 : ROWS + 1124]
    both = torch.stack([torch.pdist(codes), torch.pdist(rows)])
    assert torch.corrcoef(both)[0, 1] > 0.75
