"""Only plain tensors come out of a file."""

from pathlib import Path

import pytest
import torch

from aqaa.errors import UsageError
from aqaa.release.strict import count, read_state


class Trap:
    """Something that would run code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("trapped"),))  # type: ignore[return-value]


def test_tensors_by_name_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3), "step": 7, "loss": 0.5}, tmp_path / "a.pt")
    found = read_state(tmp_path / "a.pt")
    assert found.keys() == {"a"} and found["a"].tolist() == [0, 1, 2]


def test_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Trap()}, "trap.pt")
    with pytest.raises(UsageError, match="trap.pt is not a file of plain tensors"):
        read_state("trap.pt")
    assert not Path("trapped").exists()


@pytest.mark.parametrize("content", [b"", b"not torch at all", b"PK\x03\x04 cut short"])
def test_damage_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UsageError, match="a.pt is not a file of plain tensors"):
        read_state(tmp_path / "a.pt")


def test_a_list_is_no_state(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "a.pt")
    with pytest.raises(UsageError, match="holds a list, not tensors by name"):
        read_state(tmp_path / "a.pt")


def test_children_are_counted_once() -> None:
    names = ["a.0.x", "a.0.y", "a.11.x", "a.b.x", "aa.2.x", "c.a.3.x"]
    assert count(dict.fromkeys(names), "a") == 2
