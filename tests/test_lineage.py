"""Where a run came from, and whether that is still so."""

import json
import subprocess
from pathlib import Path

import pytest

from aqaa import lineage, storage
from aqaa.errors import UsageError
from aqaa.lineage import Lineage, Parent


def record(**change: object) -> Lineage:
    values = {
        "stage": "sft_1",
        "run": "a",
        "parents": {"model": Parent("runs/p/model", "12ab", True)},
        "fingerprint": "f",
        "steps": 3,
        "seconds": 1.5,
        "parameters": 7,
        "versions": {"torch": "2"},
    }
    return Lineage(**{**values, **change})  # type: ignore[arg-type]


def test_a_finished_run_is_read_back_and_its_model_sealed(tmp_path: Path) -> None:
    storage.write_text(tmp_path / "model" / "a.txt", "x")
    assert lineage.read_lineage(tmp_path) is None
    lineage.finish(tmp_path, record())
    assert lineage.read_lineage(tmp_path) == record()
    assert storage.verify_manifest(tmp_path / "model")


def test_a_run_without_a_model_can_finish(tmp_path: Path) -> None:
    lineage.finish(tmp_path / "run", record(parents={}))
    assert lineage.read_lineage(tmp_path / "run") == record(parents={})
    assert lineage.read_lineage(tmp_path / "nothing") is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"parents": {}, "colour": 1}'])
def test_a_damaged_record_is_a_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "lineage.json").write_text(content)
    with pytest.raises(UsageError, match="lineage.json is not"):
        lineage.read_lineage(tmp_path)


def test_a_parent_is_named_by_its_content(tmp_path: Path) -> None:
    with storage.atomic_folder(tmp_path / "model") as folder:
        storage.write_text(folder / "tokenizer" / "a.txt", "x")
    tree = storage.tree_hash(tmp_path / "model")
    assert lineage.parent(tmp_path / "model") == Parent(str(tmp_path / "model"), tree, True)
    inside = tmp_path / "model" / "tokenizer"
    assert lineage.parent(inside) == Parent(str(inside), tree, True)


def test_a_folder_from_elsewhere_is_not_verified(tmp_path: Path) -> None:
    folder = tmp_path / "x" / "y"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("one")
    one = lineage.parent(folder)
    assert (one.path, one.verified) == (str(folder), False)
    (folder / "a.txt").write_text("two")
    two = lineage.parent(folder)
    assert len(one.hash) == len(two.hash) == 64
    assert one.hash != two.hash  # else two runs from different weights were the same run
    assert storage.write_manifest(folder) == two.hash
    assert lineage.parent(folder) == Parent(str(folder), two.hash, True)


def test_a_file_from_elsewhere_is_named_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}")
    found = lineage.parent(tmp_path / "x.jsonl")
    assert (found.hash, found.verified) == (storage.sha256_file(tmp_path / "x.jsonl"), False)


def test_a_missing_or_damaged_parent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist: run the stage that makes it first"):
        lineage.parent(tmp_path / "none")
    with storage.atomic_folder(tmp_path / "model") as folder:
        storage.write_text(folder / "a.txt", "x")
    (tmp_path / "model" / "a.txt").write_text("y")
    with pytest.raises(UsageError, match="damaged"):
        lineage.parent(tmp_path / "model")


def test_the_fingerprint_sees_settings_and_content_but_no_places() -> None:
    one = lineage.fingerprint({"a": 1, "b": 2}, {"p": Parent("here", "12", True)})
    assert one == lineage.fingerprint({"b": 2, "a": 1}, {"p": Parent("there", "12", False)})
    assert one != lineage.fingerprint({"a": 1, "b": 3}, {"p": Parent("here", "12", True)})
    assert one != lineage.fingerprint({"a": 1, "b": 2}, {"p": Parent("here", "13", True)})
    assert one != lineage.fingerprint({"a": 1, "b": 2}, {"q": Parent("here", "12", True)})


def test_versions_name_the_packages() -> None:
    found = lineage.versions()
    assert found["torch"].startswith("2.")
    assert set(found) >= {"aqaa", "torch", "lightning", "transformers", "numpy"}


def test_versions_do_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "commit" not in lineage.versions()


def test_a_package_inside_another_repository_has_no_commit(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    installed = tmp_path / "site" / "lineage.py"
    storage.write_text(installed, "")
    git("init")
    git("commit", "--allow-empty", "-m", "theirs")
    assert lineage._commit(installed) == ""
    git("add", str(installed))
    git("commit", "-m", "ours")
    commit = lineage._commit(installed)
    assert len(commit) == 12
    installed.write_text("changed since")
    assert lineage._commit(installed) == f"{commit}-dirty"


def test_the_tokenizer_hash_is_of_both_books(tmp_path: Path) -> None:
    for book in ("linguistic", "semantic"):
        storage.write_text(tmp_path / book / "model.safetensors", book)
    one = lineage.tokenizer_hash(tmp_path)
    assert [len(part) for part in one.split("-")] == [12, 12]
    storage.write_text(tmp_path / "semantic" / "model.safetensors", "other")
    two = lineage.tokenizer_hash(tmp_path)
    assert one[:13] == two[:13]
    assert one != two
    (tmp_path / "semantic" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="does not hold both speech tokenizers.*semantic"):
        lineage.tokenizer_hash(tmp_path)


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    lineage.finish(tmp_path, record())
    found = json.loads((tmp_path / "lineage.json").read_text())
    assert found["parents"]["model"] == {"path": "runs/p/model", "hash": "12ab", "verified": True}
