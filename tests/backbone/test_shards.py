"""Weights in one file or in shards: what is written is what transformers and we read."""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from aqaa.backbone.shards import INDEX, WEIGHTS, read_tensors, tensor_files, write_tensors
from aqaa.errors import UsageError
from aqaa.storage import save_tensors

TENSORS = [(name, torch.randn(10, generator=torch.Generator().manual_seed(i)))
           for i, name in enumerate("dacb")]  # fmt: skip


def same(folder: Path) -> bool:
    found, wanted = dict(read_tensors(folder)), dict(TENSORS)
    return found.keys() == wanted.keys() and all(found[k].equal(wanted[k]) for k in wanted)


def test_what_fits_is_one_file_as_ever(tmp_path: Path) -> None:
    write_tensors(tmp_path, TENSORS, shard_bytes=160)
    assert [p.name for p in tmp_path.iterdir()] == [WEIGHTS]
    save_tensors(tmp_path / "plain", dict(TENSORS), {"format": "pt"})
    assert (tmp_path / WEIGHTS).read_bytes() == (tmp_path / "plain").read_bytes()
    assert same(tmp_path)


@pytest.mark.parametrize(("limit", "shards"), [(1, 4), (40, 4), (79, 4), (80, 2), (120, 2)])
def test_shards_and_their_index(limit: int, shards: int, tmp_path: Path) -> None:
    write_tensors(tmp_path, TENSORS, shard_bytes=limit)
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*names, INDEX]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 160
    for name, file in index["weight_map"].items():
        with safe_open(str(tmp_path / file), framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert opened.get_tensor(name).equal(dict(TENSORS)[name])
    assert same(tmp_path)


def test_a_shard_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def made() -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for i in range(20):
            tensor = torch.full((10,), float(i))
            alive.add(tensor)
            most = max(most, len(alive))
            yield str(i), tensor

    write_tensors(tmp_path, made(), shard_bytes=120)
    assert 3 <= most <= 4  # a shard of three, and the one that did not fit


def test_only_safetensors_that_fit_their_index_are_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UsageError, match="weights come as safetensors only"):
        tensor_files(tmp_path)
    write_tensors(tmp_path, TENSORS, shard_bytes=80)
    index = json.loads((tmp_path / INDEX).read_text())
    first = "model-00001-of-00002.safetensors"

    def refused(change: dict[str, object], sentence: str) -> None:
        (tmp_path / INDEX).write_text(json.dumps({**index, **change}))
        with pytest.raises(UsageError, match=sentence):
            list(read_tensors(tmp_path))

    places = index["weight_map"]
    refused({"weight_map": {}}, "holds no weight_map")
    refused({"weight_map": {**places, "a": "../x"}}, "is no file beside it")
    refused({"weight_map": {**places, "e": first}}, f"{first} differ in e")
    refused({"weight_map": {k: v for k, v in places.items() if k != "a"}}, "differ in a")
    (tmp_path / first).write_bytes((tmp_path / first).read_bytes()[:-1])
    refused({}, f"cannot read .*{first}")
