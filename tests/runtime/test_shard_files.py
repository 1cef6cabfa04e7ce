"""Cutting and joining of shards against plain slicing, and who needs which file, by looking."""

import pytest
import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.runtime import shard_files
from aqaa.runtime.shard_files import ShardFiles, held, needed, runs

WHOLE = {"fp32:a.b": torch.rand(3, 5), "exp_avg:a.b": torch.rand(3, 5), "fp32:c": torch.rand(4)}
CUTS = ([], [7], [1, 2, 14], [5, 10], [3, 3])  # two are at one place: a shard holds nothing


def cut(cuts: list[int]) -> list[dict[str, Tensor]]:
    """Every tensor of ``WHOLE`` cut at ``cuts``: what each shard holds."""
    shards = []
    for begin, end in zip([0, *cuts], [*cuts, None], strict=True):
        parts = {f"{k}:{begin}": v.flatten()[begin:end].clone() for k, v in WHOLE.items()}
        shards.append({name: part for name, part in parts.items() if len(part)})
    return shards


@pytest.mark.parametrize("cuts", CUTS)
def test_any_stretch_is_read_from_any_cut(cuts: list[int]) -> None:
    files = ShardFiles(shards=cut(cuts))
    for full, tensor in WHOLE.items():
        key, name = full.split(":")
        for start in range(tensor.numel()):
            for count in range(1, tensor.numel() - start + 1):
                found = files.read(key, name, start, count)
                assert found.equal(tensor.flatten()[start : start + count])
    with pytest.raises(UsageError, match="lack fp32 of c"):
        files.read("fp32", "c", 2, 3)
    with pytest.raises(UsageError, match="lack exp_avg of c"):
        files.read("exp_avg", "c", 0, 1)


@pytest.mark.parametrize("cuts", CUTS)
def test_the_list_names_the_files_that_a_stretch_needs_and_no_other(
    cuts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "rank", lambda: 1)
    monkeypatch.setattr(shard_files, "ranks", lambda: 2)  # rank 0 looks at the one empty shard
    shards = cut(cuts)
    listed = runs(held((name, len(part)) for name, part in parts.items()) for parts in shards)
    for name, size in (("a.b", 15), ("c", 4)):
        for start in range(size):
            for count in range(1, size - start + 1):
                wanted = {
                    number
                    for number, parts in enumerate(shards)
                    for full, part in parts.items()
                    if full.split(":")[1] == name
                    for at in range(int(full.split(":")[2]), int(full.split(":")[2]) + len(part))
                    if start <= at < start + count
                }
                found = needed(listed, [(name, start, count)], range(len(shards)))
                assert found == sorted(wanted), (name, start, count)


def test_a_shard_that_holds_nothing_is_looked_at_by_one_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = {"a": [[0, 0, 2, 2], [5, 4, 1, 1]]}
    monkeypatch.setattr(shard_files, "ranks", lambda: 2)
    found = []
    for rank in (0, 1):
        monkeypatch.setattr(shard_files, "rank", lambda rank=rank: rank)
        found.append(needed(listed, [("a", 2 * rank, 2)], range(6)))
    assert found == [[0, 2, 4], [1, 3]]


def test_an_even_cut_takes_two_runs_however_many_ranks_there_are() -> None:
    shards = [{"a": (7 * rank, 7)} for rank in range(99)] + [{"a": (7 * 99, 3)}]
    assert runs(shards) == {"a": [[0, 0, 7, 99], [99, 693, 3, 1]]}
