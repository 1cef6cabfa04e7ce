"""Files are hashed from what is read of them, in whatever order that happens."""

import random
from pathlib import Path

import torch

from aqaa.backbone.digests import Digests
from aqaa.backbone.shards import write_tensors
from aqaa.backbone.slices import StoredModel
from aqaa.storage import sha256_file


def opened(folder: Path) -> tuple[StoredModel, list[int]]:
    """A model of several files, and how many bytes were read of it so far, one number a read."""
    tensors = {f"t{i}": torch.randn(3 + 100 * i, 4) for i in range(9)}
    write_tensors(folder, tensors.items(), shard_bytes=4000)
    model, counts = StoredModel.of(folder), []
    real = model.read_bytes

    def read_bytes(file: Path, begin: int, room: torch.Tensor) -> None:
        counts.append(len(room))
        real(file, begin, room)

    object.__setattr__(model, "read_bytes", read_bytes)
    return model, counts


def pieces(model: StoredModel) -> list[tuple[str, int, int]]:
    return [(name, start, min(57, stored.numbers - start))
            for name, stored in model.tensors.items()
            for start in range(0, stored.numbers, 57)]  # fmt: skip


def test_hashes_are_those_of_the_files_in_any_order(tmp_path: Path) -> None:
    for seed in range(8):
        folder = tmp_path / str(seed)
        folder.mkdir()
        model, counts = opened(folder)
        total = sum(file.stat().st_size for file in model.files)
        places = pieces(model)
        if seed:
            random.Random(seed).shuffle(places)
            del places[: 10 * seed]  # some are never read
        digests = Digests(model)
        for name, start, count in places:
            digests.take(model.read(name, start, torch.empty(count)))
        found = digests.finished()
        assert len(found) > 3
        assert found == {file: sha256_file(file) for file in model.files}
        if not seed:  # in the order of the files nothing but their heads is read a second time
            heads = total - sum(4 * stored.numbers for stored in model.tensors.values())
            assert sum(counts) == total and heads > 0
