"""Files are whole or absent, and damage is found."""

import errno
import hashlib
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from aqaa import storage
from aqaa.errors import UsageError
from aqaa.storage import MANIFEST


@contextmanager
def full_disk(size_bytes: int = 4096) -> Iterator[None]:
    """Files cannot grow beyond ``size_bytes``: the kernel refuses, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: storage.write_text(path, "x" * 100_000),
    "json": lambda path: storage.write_json(path, ["x"] * 50_000),
    "tensors": lambda path: storage.save_tensors(path, {"a": torch.zeros(50_000)}),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("before", ["", "old"])
def test_a_full_disk_leaves_what_was_there(kind: str, before: str, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    if before:
        path.write_text(before)
    with full_disk(), pytest.raises(UsageError, match="cannot write .*file.bin: .*nothing") as info:
        WRITERS[kind](path)
    assert "\n" not in str(info.value)
    assert [p.name for p in tmp_path.iterdir()] == (["file.bin"] if before else [])
    if before:
        assert path.read_text() == before


def test_a_full_disk_during_a_folder_keeps_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with storage.atomic_folder(folder) as inside:
        storage.write_text(inside / "a.txt", "old")
    before = storage.verify_manifest(folder)
    with full_disk(), pytest.raises(UsageError) as info, storage.atomic_folder(folder) as inside:
        storage.write_text(inside / "a.txt", "new")
        storage.save_tensors(inside / "b.safetensors", {"a": torch.zeros(50_000)})
    assert str(folder / "b.safetensors") in str(info.value)  # where it was to be, not the temporary
    assert storage.verify_manifest(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_safetensors_error_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(UsageError, match="No space left on device"):
        storage.save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failure_at_the_last_moment_keeps_the_old_file(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    storage.write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(UsageError, match="No space left on device; nothing was changed"):
        storage.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_was_hashed_as_it_was_written_is_not_read_again(tmp_path: Path) -> None:
    hashed = {"deep/a.txt": hashlib.sha256(b"a").hexdigest(), "b.txt": "0" * 64}
    with storage.atomic_folder(tmp_path / "model", hashed) as inside:
        for name in ("deep/a.txt", "b.txt", "c.txt"):
            storage.write_text(inside / name, name[-5])
    with pytest.raises(UsageError, match="b.txt is damaged"):  # its hash was taken as it was told
        storage.verify_manifest(tmp_path / "model")
    storage.write_manifest(tmp_path / "model")
    storage.verify_manifest(tmp_path / "model")


def test_the_old_folder_returns_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    with storage.atomic_folder(folder) as inside:
        storage.write_text(inside / "a.txt", "old")
    replace, calls = os.replace, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if target == folder and len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with pytest.raises(UsageError, match="nothing was changed"):
        with storage.atomic_folder(folder) as inside:
            (inside / "a.txt").write_text("new")
            storage.write_manifest(inside)
            monkeypatch.setattr(storage, "write_manifest", lambda *_: "")
            monkeypatch.setattr(os, "replace", second_fails)
    assert (folder / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("atomic", [storage.atomic_path, storage.atomic_folder])
def test_an_error_in_the_block_changes_nothing(
    atomic: Callable[..., object], tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError):
        with atomic(tmp_path / "there" / "a") as temporary:  # type: ignore[attr-defined]
            if atomic is storage.atomic_path:
                temporary.write_text("half")
            else:
                (temporary / "b").write_text("half")
            raise ZeroDivisionError
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("atomic", [storage.atomic_path, storage.atomic_folder])
def test_an_error_about_another_file_keeps_its_name(
    atomic: Callable[..., object], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="source.txt"):
        with atomic(tmp_path / "a"):  # type: ignore[attr-defined]
            (tmp_path / "source.txt").read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("atomic", [storage.atomic_path, storage.atomic_folder])
def test_a_file_in_the_way_is_a_sentence(atomic: Callable[..., object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        with atomic(tmp_path / "file" / "model"):  # type: ignore[attr-defined]
            raise AssertionError("the block must not run")


def test_the_half_written_file_has_another_name(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with storage.atomic_path(path) as temporary:
        temporary.write_text("x")
        assert not path.exists()
        assert temporary.suffix == ".wav"
        assert temporary.parent == path.parent
    assert path.read_text() == "x"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_are_as_readable_as_any_other(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with storage.atomic_folder(tmp_path / "model") as inside:
            safetensors.torch.save_file({"a": torch.zeros(3)}, inside / "by_hand.safetensors")
            storage.save_tensors(inside / "ours.safetensors", {"a": torch.zeros(3)})
    finally:
        os.umask(before)
    for file in (tmp_path / "model").iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~mask, file


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for number in (1, 2):
        with storage.atomic_folder(tmp_path / "model") as inside:
            storage.write_text(inside / f"only_{number}.txt", str(number))
        assert not list(tmp_path.glob(".*"))
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"only_2.txt", MANIFEST}


def test_a_folder_that_is_not_ours_is_never_lost(tmp_path: Path) -> None:
    music = tmp_path / "Music"
    music.mkdir()
    (music / "song.ogg").write_text("mine")
    with pytest.raises(UsageError, match=r"Music exists and holds no MANIFEST\.sha256") as info:
        with storage.atomic_folder(music):
            raise AssertionError("the block must not run: its work would be lost")
    assert "\n" not in str(info.value)
    assert [p.name for p in tmp_path.rglob("*")] == ["Music", "song.ogg"]
    with pytest.raises(UsageError, match=r"song\.ogg exists"):
        with storage.atomic_folder(music / "song.ogg"):
            raise AssertionError("the block must not run")
    assert (music / "song.ogg").read_text() == "mine"


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    with storage.atomic_folder(tmp_path) as inside:
        storage.write_text(inside / "a.txt", "new")
    assert storage.verify_manifest(tmp_path)


# ---- the manifest


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "sealed"
    with storage.atomic_folder(folder) as inside:
        storage.write_text(inside / "a.txt", "alpha")
        storage.write_text(inside / "deep" / "b.txt", "beta")
    return folder


def test_the_manifest_is_what_sha256sum_reads(sealed: Path) -> None:
    known = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8"  # of "alpha"
    lines = (sealed / MANIFEST).read_text().splitlines()
    assert lines[0] == f"{known}  a.txt"
    assert [line[66:] for line in lines] == ["a.txt", "deep/b.txt"]
    assert storage.verify_manifest(sealed) == storage.tree_hash(sealed)


def test_the_hash_names_the_content_alone(sealed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sealed, tmp_path / "elsewhere")
    assert storage.write_manifest(copy) == storage.tree_hash(sealed)
    storage.write_text(copy / "a.txt", "Alpha")
    assert storage.write_manifest(copy) != storage.tree_hash(sealed)
    assert storage.tree_hash(tmp_path) == ""


def _cut(sealed: Path) -> None:
    (sealed / MANIFEST).write_bytes((sealed / MANIFEST).read_bytes()[:100])


def _flip(sealed: Path) -> None:
    (sealed / "deep/b.txt").write_text("betb")


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / MANIFEST).unlink(), "holds no MANIFEST.sha256"),
    (lambda f: (f / "deep/b.txt").unlink(), "is incomplete: deep/b.txt is missing"),
    (_flip, "b.txt is damaged"),
    (lambda f: (f / "a.txt").write_text("alph"), "a.txt is damaged"),
    (lambda f: (f / "deep/c.txt").write_text(""), "holds deep/c.txt, which"),
    (_cut, "MANIFEST.sha256 is damaged"),
    (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe\n"), "MANIFEST.sha256 is damaged"),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE, ids=[s for _, s in DAMAGE])
def test_damage_is_found(damage: Callable[[Path], object], sentence: str, sealed: Path) -> None:
    damage(sealed)
    with pytest.raises(UsageError, match=sentence):
        storage.verify_manifest(sealed)


def test_additions_may_be_allowed(sealed: Path) -> None:
    (sealed / "card.md").write_text("more")
    assert storage.verify_manifest(sealed, allow_extra=True) == storage.tree_hash(sealed)
    _flip(sealed)
    with pytest.raises(UsageError, match="damaged"):
        storage.verify_manifest(sealed, allow_extra=True)


# ---- reading


def test_json_makes_the_round_trip(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True], "ä": "ö"}
    storage.write_json(tmp_path / "deep" / "a.json", value)
    assert storage.read_json(tmp_path / "deep" / "a.json") == value
    assert "ä" in (tmp_path / "deep" / "a.json").read_text("utf-8")


def test_json_is_strict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        storage.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_bad_json_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        storage.read_json(tmp_path / "none.json")
    for content in (b'{"a": ', b"\xff\xfe\x00", b""):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(UsageError, match="bad.json is not valid JSON"):
            storage.read_json(tmp_path / "bad.json")
    with pytest.raises(UsageError, match="cannot read"):
        storage.read_json(tmp_path)


def test_tensors_make_the_round_trip_in_one_order(tmp_path: Path) -> None:
    a, b = torch.randn(3, 4), torch.arange(5)
    storage.save_tensors(tmp_path / "1", {"a": a.T, "b": b})
    storage.save_tensors(tmp_path / "2", {"b": b, "a": a.T})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    loaded = storage.load_tensors(tmp_path / "1")
    assert torch.equal(loaded["a"], a.T)
    assert torch.equal(loaded["b"], b)


def test_bad_tensors_are_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(UsageError, match="does not exist"):
        storage.load_tensors(path)
    storage.save_tensors(path, {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UsageError, match="is damaged or not a safetensors file"):
        storage.load_tensors(path)
    with pytest.raises(UsageError, match="cannot read|damaged"):
        storage.load_tensors(tmp_path)


# ---- organs


class Scale(torch.nn.Module):
    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(float(width)))
        self.register_buffer("steps", torch.tensor(7))


def _save(folder: Path, organ: Scale, dtype: torch.dtype | None = None) -> None:
    settings = {"width": len(organ.weight)}
    storage.save_organ(folder, "Scale", settings, organ.state_dict(), dtype)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_an_organ_makes_the_round_trip(dtype: torch.dtype | None, tmp_path: Path) -> None:
    organ = Scale(width=6)
    _save(tmp_path, organ, dtype)
    stored = storage.load_tensors(tmp_path / "model.safetensors")
    assert stored["weight"].dtype == (dtype or torch.float32)
    assert stored["steps"].dtype == torch.int64
    loaded = storage.load_organ(tmp_path, Scale)
    assert not loaded.training
    assert loaded.weight.dtype == torch.float32
    assert torch.equal(loaded.weight, organ.weight)


def test_a_number_too_large_for_halves_is_refused(tmp_path: Path) -> None:
    organ = Scale(width=3)
    with torch.no_grad():
        organ.weight[2] = 1e5
    with pytest.raises(UsageError, match="tensor weight reaches 100000, which torch.float16"):
        _save(tmp_path, organ, torch.float16)
    assert list(tmp_path.iterdir()) == []


WRONG = [
    ('{"organ": "Shift", "width": 3}', "holds a Shift, not a Scale"),
    ('{"model_type": "llama"}', "holds a llama, not a Scale"),
    ("{}", "holds a something else, not a Scale"),
    ("[]", "holds no settings"),
    ('{"organ": "Scale", "height": 3}', "does not fit a Scale: .*height"),
    ('{"organ": "Scale", "width": 4}', "does not fit a Scale: .*size mismatch"),
]


@pytest.mark.parametrize(("config", "sentence"), WRONG)
def test_a_wrong_organ_is_refused(config: str, sentence: str, tmp_path: Path) -> None:
    _save(tmp_path, Scale(width=3))
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UsageError, match=sentence) as info:
        storage.load_organ(tmp_path, Scale)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("change", ["lacks", "adds"])
def test_other_tensors_are_refused(change: str, tmp_path: Path) -> None:
    state = Scale(width=3).state_dict()
    state = {"weight": state["weight"]} if change == "lacks" else {**state, "b": torch.ones(1)}
    storage.save_organ(tmp_path, "Scale", {"width": 3}, state)
    with pytest.raises(UsageError, match="does not fit a Scale"):
        storage.load_organ(tmp_path, Scale)
