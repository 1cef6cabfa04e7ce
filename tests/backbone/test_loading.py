"""A backbone folder is read exactly or refused in a sentence."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from aqaa.audio.torchaudio_shim import ensure
from aqaa.backbone import loading
from aqaa.backbone.loading import Backbone, Ids, load_backbone
from aqaa.backbone.lora import Lora
from aqaa.backbone.shards import INDEX, read_tensors
from aqaa.errors import UsageError
from aqaa.grammar import Slot
from aqaa.storage import load_tensors, save_tensors, verify_manifest
from aqaa.stream import StreamLayout
from tests.alive import Alive
from tests.golden.make import backbone, ids
from tests.llama import write_llama

LAYOUT = StreamLayout(3, 5, "linguistic", "removed")
IDS = torch.arange(9)[None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    backbone(tmp_path / "model", tokenizer_hash="ab-cd", layout=LAYOUT, tied=False)
    return tmp_path / "model"


def test_ids_make_the_round_trip(tmp_path: Path) -> None:
    meaning = ids("ab-cd", LAYOUT)
    meaning.save(tmp_path)
    loaded = Ids.load(tmp_path)
    assert (loaded.vocabulary, loaded.layout) == (meaning.vocabulary, LAYOUT)
    assert loaded.tokenizer_hash == "ab-cd"
    assert loaded.text.encode("w03 w44") == meaning.text.encode("w03 w44")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_saved_and_loaded_it_is_the_same(
    tied: bool, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    first = backbone(tmp_path / "model", tied=tied)
    first.save(tmp_path / "again", dtype=dtype)
    assert verify_manifest(tmp_path / "again")
    stored = load_tensors(tmp_path / "again" / "model.safetensors")
    assert ("lm_head.weight" in stored) == (not tied)  # a tied table is written once
    assert {t.dtype for t in stored.values()} == {dtype or torch.float32}
    again = load_backbone(tmp_path / "again")
    assert again.model.dtype == torch.float32
    assert not again.model.training
    with torch.no_grad():
        found, wanted = (b.hidden(IDS).last_hidden_state for b in (again, first))
    tolerance = 0 if dtype is None else 0.01
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    torch.testing.assert_close(again.table, first.table, rtol=0, atol=tolerance)


def test_the_table_and_its_slots(tmp_path: Path) -> None:
    loaded = backbone(tmp_path / "model", tied=False)
    assert loaded.table is loaded.model.lm_head.weight
    rows = loaded.slot_rows(Slot.LINGUISTIC)
    assert rows.tolist() == loaded.ids.layout.slot_ids(Slot.LINGUISTIC, loaded.ids.vocabulary)
    with torch.no_grad():
        logits = loaded.model(IDS).logits
        again = loaded.hidden(IDS).last_hidden_state @ loaded.table.T
    torch.testing.assert_close(logits, again)


def test_another_layout_may_be_used(folder: Path) -> None:
    assert load_backbone(folder).ids.layout == LAYOUT
    assert load_backbone(folder, layout=StreamLayout(6, 50)).ids.layout == StreamLayout(6, 50)


def test_another_causal_model_can_be_the_backbone(tmp_path: Path) -> None:
    ensure()
    from transformers import LlamaConfig, LlamaForCausalLM

    meaning = ids()
    config = LlamaConfig(
        vocab_size=meaning.vocabulary.rows,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).eval()
    Backbone(model, meaning).save(tmp_path / "llama")
    loaded = load_backbone(tmp_path / "llama")
    with torch.no_grad():
        found = loaded.hidden(IDS).last_hidden_state @ loaded.table.T
        assert torch.allclose(found, model(IDS).logits, atol=1e-5)


def test_the_record_says_whose_weights_they_are(folder: Path) -> None:
    assert json.loads((folder / "aqaa.json").read_text())["model_type"] == "step1"
    load_backbone(folder).save(folder.parent / "again")
    assert Ids.load(folder.parent / "again").model_type == "step1"


@pytest.mark.parametrize("recorded", [True, False])
def test_weights_of_step1_are_not_offered_to_a_llama(recorded: bool, folder: Path) -> None:
    record = json.loads((folder / "aqaa.json").read_text())
    if not recorded:  # as folders were written before: the class in config.json is left to tell
        del record["model_type"]
        (folder / "aqaa.json").write_text(json.dumps(record))
        assert load_backbone(folder).ids.model_type == ""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(UsageError, match="written as step1, but its config.json says llama"):
        load_backbone(folder)


def test_weights_may_be_loaded_in_another_precision(folder: Path) -> None:
    loaded = load_backbone(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_a_missing_tensor_is_not_made_up(folder: Path) -> None:
    state = load_tensors(folder / "model.safetensors")
    gone = "model.layers.1.mlp.up_proj.weight"
    rest = {k: v for k, v in state.items() if k != gone}
    save_tensors(folder / "model.safetensors", rest, {"format": "pt"})
    with pytest.raises(UsageError, match=f"does not fit its config.json: missing {gone}"):
        load_backbone(folder)


def test_a_tensor_too_many_is_refused(folder: Path) -> None:
    state = load_tensors(folder / "model.safetensors")
    more = {**state, "vision.weight": torch.ones(3)}
    save_tensors(folder / "model.safetensors", more, {"format": "pt"})
    with pytest.raises(UsageError, match="unexpected vision.weight"):
        load_backbone(folder)


@pytest.mark.parametrize("model_type", ["step1", "stranger"])
def test_code_that_a_folder_brings_never_runs(
    model_type: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = model_type
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    (folder / "config.json").write_text(json.dumps(config))
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    if model_type == "step1":
        assert load_backbone(folder).ids.layout == LAYOUT  # by our own class
    else:
        with pytest.raises(UsageError, match="cannot be loaded"):
            load_backbone(folder)
    assert not asked
    assert not ran.exists()


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _record(folder: Path, **change: object) -> None:
    record = json.loads((folder / "aqaa.json").read_text())
    (folder / "aqaa.json").write_text(json.dumps({**record, **change}))


def _vocabulary(folder: Path) -> None:
    _record(folder, vocabulary={"text_tokens": 900})


def _narrower(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 16}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "aqaa.json").unlink(), "is not a backbone folder: it holds no aqaa.json"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded: "),
        (lambda f: (f / "config.json").write_text("{"), "cannot be loaded: "),
        (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer.json"),
        (lambda f: (f / "aqaa.json").write_text("{}"), "does not describe ids"),
        (lambda f: _record(f, layout={"colour": 1}), "does not describe ids"),
        (_cut, "cannot be loaded: "),
        (_vocabulary, "the table has 5184 rows, aqaa.json says"),
        (_narrower, "cannot be loaded|mismatched"),
    ],
)
def test_damage_is_a_sentence(damage: object, sentence: str, folder: Path) -> None:
    damage(folder)  # type: ignore[operator]
    with pytest.raises(UsageError, match=sentence) as info:
        load_backbone(folder)
    assert "\n" not in str(info.value)
    assert str(folder) in str(info.value)


# ---- out of shards: the parameters of a plain model, made to look like ZeRO-3's


class Shards:
    """Gathers one after the other; notes how many there were."""

    def __init__(self, model: Any, *, keeps: bool = True) -> None:
        self.keeps = keeps
        self.gathered: list[int] = []
        for parameter in model.parameters():
            parameter.ds_shape = parameter.shape

    @contextmanager
    def __call__(self, parameters: Sequence[Any]) -> Iterator[bool]:
        (one,) = parameters
        self.gathered.append(id(one))
        yield self.keeps


def kinds(tmp_path: Path) -> dict[str, Backbone]:
    lora = Lora(rank=2, alpha=4, dropout=0.0, targets="all-linear", seed=3)
    found = {
        "tied": backbone(tmp_path / "tied_model", tied=True),
        "untied": backbone(tmp_path / "untied_model", tied=False),
        "llama": load_backbone(write_llama(tmp_path / "llama_model", ids())),
        "lora": lora.wrap(backbone(tmp_path / "lora_model", tied=False)),
    }
    for name, parameter in found["lora"].model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    return found


def test_out_of_shards_comes_the_same_folder_a_file_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, limit = loading.gathered, 20_000
    monkeypatch.setattr(loading, "SHARD_BYTES", limit)
    for name, plain in kinds(tmp_path).items():
        monkeypatch.setattr(loading, "gathered", real)
        plain.save(tmp_path / "plain" / name)
        alive = Alive()

        def watched(*args: Any, see: Any = alive.see) -> Iterator[tuple[str, torch.Tensor]]:
            return ((n, see(tensor)) for n, tensor in real(*args))

        monkeypatch.setattr(loading, "gathered", watched)
        plain.save(tmp_path / "shards" / name, gather=Shards(plain.model))
        for parameter in plain.model.parameters():
            del parameter.ds_shape
        out, wanted = tmp_path / "shards" / name, tmp_path / "plain" / name
        assert (out / INDEX).is_file() and verify_manifest(out)
        tensors, other = dict(read_tensors(out)), dict(read_tensors(wanted))
        assert tensors.keys() == other.keys() and all(tensors[k].equal(other[k]) for k in other)
        for file in {p.name for p in wanted.iterdir()} - {"model.safetensors", "MANIFEST.sha256"}:
            assert (out / file).read_bytes() == (wanted / file).read_bytes(), (name, file)
        small = sum(p.numel() * 4 for n, p in plain.model.named_parameters() if "lora_" in n)
        assert alive.most <= limit + 2 * alive.largest + small, name
        assert alive.most < sum(t.nbytes for t in other.values()) + small
    lora, other = (load_tensors(tmp_path / kind / "adapter" / "adapter_model.safetensors")
                   for kind in ("plain", "shards"))  # fmt: skip
    assert lora.keys() == other.keys() and all(lora[k].equal(other[k]) for k in lora)


def test_every_rank_gathers_every_parameter_whatever_goes_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = backbone(tmp_path / "model", tied=True)
    wanted = [id(p) for p in plain.model.parameters()]
    elsewhere = Shards(plain.model, keeps=False)
    plain.save(tmp_path / "none", gather=elsewhere)
    assert sorted(elsewhere.gathered) == sorted(wanted) and not (tmp_path / "none").exists()

    def full(*args: Any) -> Any:
        raise UsageError("no room")

    here = Shards(plain.model)
    monkeypatch.setattr(loading, "narrowed", full)
    with pytest.raises(UsageError, match="no room"):
        plain.save(tmp_path / "none", gather=here)
    assert here.gathered == elsewhere.gathered and not (tmp_path / "none").exists()
