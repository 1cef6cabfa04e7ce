"""The weighted mean of three models."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aqaa.backbone.loading import Ids, load_backbone
from aqaa.errors import UsageError
from aqaa.stages.merge import merge
from aqaa.storage import load_tensors, read_json, write_manifest
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
    with pytest.raises(UsageError, match="have different tokenizers or vocabularies"):
        merge(models=[*folders(chain)[:2], str(copy)], weights=[5, 5, 1], out=str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("weights", [[5, 5], [0, 0, 0], [2, 2, -1]])
def test_unfit_weights_leave_nothing(chain: Chain, tmp_path: Path, weights: list[float]) -> None:
    with pytest.raises(UsageError, match="weights"):
        merge(models=folders(chain), weights=weights, out=str(tmp_path / "m"))
    assert not (tmp_path / "m" / "lineage.json").exists()
    assert not list((tmp_path / "m").glob("*"))
