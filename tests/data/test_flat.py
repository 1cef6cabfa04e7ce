"""Flat files: what was written is read, mapped and not copied; damage is named in a sentence."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from aqaa.data.flat import Flat, write_flat
from aqaa.errors import UsageError

LISTS = [[5, 6, 7], [], [2**31 - 1], [0, -1], []]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_flat(tmp_path, "a", LISTS)
    return tmp_path


def test_there_and_back(folder: Path) -> None:
    flat = Flat(folder, "a")
    assert len(flat) == 5
    assert [flat[i].tolist() for i in range(5)] == LISTS


def test_the_bytes_are_as_documented(folder: Path) -> None:
    assert (folder / "a.bin").read_bytes() == np.array([5, 6, 7, 2**31 - 1, 0, -1], "<i4").tobytes()
    index = (folder / "a.idx").read_bytes()
    assert index[:8] == b"aqaa-idx"
    assert np.frombuffer(index[8:], "<i8").tolist() == [1, 5, 6, 0, 3, 3, 4, 6, 6]


def test_nothing_at_all_is_a_store_too(tmp_path: Path) -> None:
    write_flat(tmp_path, "none", [])
    write_flat(tmp_path, "empty", [[], []])
    assert len(Flat(tmp_path, "none")) == 0
    assert Flat(tmp_path, "empty")[1].tolist() == []


def test_ids_stay_on_the_disk(folder: Path) -> None:
    found = Flat(folder, "a")[0]
    assert isinstance(found, np.memmap) and not found.flags.owndata
    # A copy for a worker says where the files are, and holds no ids.
    assert len(pickle.dumps(Flat(folder, "a"))) < 300 + len(str(folder))
    assert pickle.loads(pickle.dumps(Flat(folder, "a")))[0].tolist() == [5, 6, 7]


def header(path: Path, place: int, value: int) -> None:
    numbers = np.fromfile(path, "<i8")
    numbers[place] = value
    numbers.tofile(path)


DAMAGE = [
    (lambda f: (f / "a.bin").unlink(), "a.bin does not exist: the store is incomplete"),
    (lambda f: (f / "a.bin").write_bytes(b"1234567"), "a.bin is damaged: it has 7 bytes, not 24"),
    (lambda f: (f / "a.bin").open("ab").write(b"1234"), "a.bin is damaged: it has 28 bytes"),
    (lambda f: (f / "a.idx").write_bytes(b"aqaa-idx"), "a.idx is damaged: it has 8 bytes, not 32"),
    (lambda f: (f / "a.idx").open("ab").write(b"1"), "a.idx is damaged: it has 81 bytes, not 80"),
    (lambda f: header(f / "a.idx", 0, 7), "a.idx is damaged or no index of ids"),
    (lambda f: header(f / "a.idx", 1, 2), "a.idx is of version 2, not 1: tokenize again"),
    (lambda f: header(f / "a.idx", 2, 3), "a.idx is damaged: it has 80 bytes, not 64"),
    (lambda f: header(f / "a.idx", 3, 9), "a.idx is damaged: its offsets do not rise from 0 to 9"),
    (lambda f: header(f / "a.idx", 6, 5), "a.idx is damaged: its offsets do not rise from 0 to 6"),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE)
def test_damage_is_named(folder: Path, damage, sentence: str) -> None:
    damage(folder)
    with pytest.raises(UsageError, match=sentence) as caught:
        Flat(folder, "a")
    assert "\n" not in str(caught.value)
