"""Reference scores on disk: kept, taken up, mapped, refused when they are of something else."""

import os
from pathlib import Path

import pytest
import torch

from aqaa.data.scores import Scores, keep_scores, read_scores, scores_beside
from aqaa.errors import UsageError

MADE_OF = {"model": "a" * 64, "pairs": "b" * 64, "layout": "c" * 64, "normalise": "slot"}


def test_what_is_kept_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "pairs.scores" / "x.safetensors"
    assert read_scores(path, MADE_OF) is None
    some = torch.randn(2, 2, 4)
    keep_scores(path, MADE_OF, Scores.none(5, 4).with_these([3, 0], some))
    found = read_scores(path, MADE_OF)
    assert found is not None and found.left == [1, 2, 4]
    assert torch.equal(found.scores[[3, 0]], some) and not found.scores[found.left].any()
    rest = torch.randn(3, 2, 4)
    whole = found.with_these([1, 2, 4], rest)
    assert found.left == [1, 2, 4]  # what lies in the file is not written to
    keep_scores(path, MADE_OF, whole)
    again = read_scores(path, MADE_OF)
    assert again is not None and not again.left
    assert torch.equal(again.scores, whole.scores) and torch.equal(again.scores[[1, 2, 4]], rest)
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


def test_a_file_is_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    keep_scores(path, MADE_OF, Scores.none(1 << 18, 4))
    found = read_scores(path, MADE_OF)
    assert found is not None
    maps = Path(f"/proc/{os.getpid()}/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    lines = [line for line in maps.read_text().splitlines() if str(path) in line]
    ranges = [line.split()[0].split("-") for line in lines]
    at = found.scores.data_ptr()
    assert any(int(a, 16) <= at < int(b, 16) for a, b in ranges)


@pytest.mark.parametrize("name", MADE_OF)
def test_scores_of_something_else_are_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    keep_scores(path, {**MADE_OF, name: "other"}, Scores.none(2, 4))
    with pytest.raises(UsageError) as caught:
        read_scores(path, MADE_OF)
    said = str(caught.value)
    assert said.startswith(f"the reference scores in {path} are stale: they were made with {name} ")
    assert f"other, this run has {MADE_OF[name][:16]}; remove the file" in said and "\n" not in said


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"not one")
    with pytest.raises(UsageError, match="holds no reference scores"):
        read_scores(path, MADE_OF)


def test_what_they_are_of_is_in_the_name(tmp_path: Path) -> None:
    path = scores_beside(tmp_path / "pairs", MADE_OF)
    assert path.parent == tmp_path / "pairs.scores"
    assert path == scores_beside(tmp_path / "pairs", dict(reversed(MADE_OF.items())))
    for name in MADE_OF:
        assert scores_beside(tmp_path / "pairs", {**MADE_OF, name: "other"}) != path
