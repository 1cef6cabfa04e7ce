"""The weighted mean of three models."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aqaa.backbone.loading import Ids, load_backbone
from aqaa.errors import UsageError
from aqaa.stages.merge import merge
from aqaa.storage import load_tensors, read_json, write_json, write_manifest
from tests.conftest import Chain

PARTS = ("sft_1", "sft_2", "dpo")


def folders(chain: Chain) -> list[str]:
    return [f"{chain / part}/model" for part in PARTS]


def test_it_is_the_mean_in_float64_rounded_once(chain: Chain) -> None:
    parts = [load_tensors(f"{folder}/model.safetensors") for folder in folders(chain)]
    merged = load_tensors(chain / "merge/model/model.safetensors")
    assert merged.keys() == parts[0].keys()
    for name, tensor in merged.items():
        five, also_five, one = (part[name].double() for part in parts)
        assert torch.equal(tensor, ((5 * five + 5 * also_five + one) / 11).float())


def test_the_result_is_a_model_with_a_record(chain: Chain) -> None:
    assert load_backbone(chain / "merge/model").ids.tokenizer_hash
    record = read_json(chain / "merge/lineage.json")
    assert (record["stage"], record["steps"], len(record["parents"])) == ("merge", 0, 3)
    merged = load_tensors(chain / "merge/model/model.safetensors")
    assert record["parameters"] == sum(t.numel() for t in merged.values())


def test_weights_count_by_their_ratio(chain: Chain, tmp_path: Path) -> None:
    merge(models=folders(chain), weights=[10, 10, 2], out=str(tmp_path / "a"))
    assert (tmp_path / "a/model/model.safetensors").read_bytes() == (
        (chain / "merge/model/model.safetensors").read_bytes()
    )


def test_a_damaged_model_is_refused(chain: Chain, tmp_path: Path) -> None:
    copy = shutil.copytree(folders(chain)[2], tmp_path / "dpo")
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(UsageError, match="is damaged"):
        merge(models=[*folders(chain)[:2], str(copy)], weights=[5, 5, 1], out=str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_models_of_other_tokenizers_are_refused(chain: Chain, tmp_path: Path) -> None:
    copy = shutil.copytree(folders(chain)[2], tmp_path / "dpo")
    replace(Ids.load(copy), tokenizer_hash="other").save(copy)
    write_manifest(copy)
    with pytest.raises(UsageError, match="have different speech tokenizers"):
        merge(models=[*folders(chain)[:2], str(copy)], weights=[5, 5, 1], out=str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def _layout(folder: Path) -> None:
    found = Ids.load(folder)
    replace(found, layout=replace(found.layout, text_block=7)).save(folder)


def _text(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text() + "\n")


def _config(folder: Path) -> None:
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "num_attention_heads": 1, "extra": 3})


@pytest.mark.parametrize(
    ("change", "what"), [(_layout, "layouts"), (_text, "text tokenizers"), (_config, "sizes")]
)
def test_models_that_mean_something_else_are_refused(
    chain: Chain, tmp_path: Path, change: Callable[[Path], None], what: str
) -> None:
    copy = shutil.copytree(folders(chain)[2], tmp_path / "dpo")
    change(copy)
    write_manifest(copy)
    with pytest.raises(UsageError, match=f"have different {what}") as info:
        merge(models=[*folders(chain)[:2], str(copy)], weights=[5, 5, 1], out=str(tmp_path / "m"))
    assert "\n" not in str(info.value)
    assert not (tmp_path / "m").exists()


def test_its_settings_stay_with_it(chain: Chain, tmp_path: Path) -> None:
    merge(models=folders(chain), weights=[5, 5, 1], out=str(tmp_path / "m"))
    lines = (tmp_path / "m" / "config.yaml").read_text().splitlines()
    assert lines[0].startswith("models: [") and folders(chain)[1] in lines[0]
    assert lines[1] == "weights: [5.0, 5.0, 1.0]"
    merge(models=folders(chain), weights=[1, 1, 1], out=str(tmp_path / "m"))  # a merge may go
    assert "[1.0, 1.0, 1.0]" in (tmp_path / "m" / "config.yaml").read_text()


@pytest.mark.parametrize("kept", ["lineage.json", "checkpoints/last.ckpt", "thesis.txt"])
def test_another_stages_run_is_never_written_over(chain: Chain, tmp_path: Path, kept: str) -> None:
    run = tmp_path / "run"
    (run / kept).parent.mkdir(parents=True)
    (run / kept).write_text((chain / "sft_1/lineage.json").read_text())
    with pytest.raises(UsageError, match="choose another out"):
        merge(models=folders(chain), weights=[5, 5, 1], out=str(run))
    assert [p.name for p in run.iterdir()] == [kept.split("/")[0]]


@pytest.mark.parametrize("weights", [[5, 5], [0, 0, 0], [2, 2, -1]])
def test_unfit_weights_leave_nothing(chain: Chain, tmp_path: Path, weights: list[float]) -> None:
    with pytest.raises(UsageError, match="weights"):
        merge(models=folders(chain), weights=weights, out=str(tmp_path / "m"))
    assert not (tmp_path / "m" / "lineage.json").exists()
    assert not list((tmp_path / "m").glob("*"))
