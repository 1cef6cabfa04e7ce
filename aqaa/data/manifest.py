"""aqaa-jsonl: one JSON object a line; the paths in it are relative to the manifest's folder."""

import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aqaa.audio.file import read_audio
from aqaa.errors import UsageError
from aqaa.signals import Waveform
from aqaa.storage import write_text

HUMAN = ("user", "human")  # roles of who asks
_DEEPEST = 64
_HINT = "`aqaa data validate` lists all findings"


def read_manifest(path: str | Path) -> list[dict[str, Any]]:
    """All rows of a manifest; blank lines are skipped.

    Raises:
        UsageError: no such file, or a line that is no JSON object, by its number.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"the manifest {path} does not exist")
    rows = []
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                row, problem = parse_row(line)
                if problem:
                    raise UsageError(f"{path}:{number} is {problem}; {_HINT}")
                rows.append(row)
    return rows


def manifests_of(folder: str | Path) -> list[Path]:
    """The manifests of a folder, by name; hidden files are none.

    Raises:
        UsageError: it holds none.
    """
    found = sorted(p for p in Path(folder).glob("*.jsonl") if not p.name.startswith("."))
    if not found:
        raise UsageError(f"{folder} holds no manifest (*.jsonl)")
    return found


class Manifest(Sequence[dict[str, Any]]):
    """The rows of a manifest, each read from the file when it is asked for.

    Eight bytes a row are held, so that a corpus may have more rows than fit in memory.

    Raises:
        UsageError: no such file; or, when it is asked for, a line that is no JSON object.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise UsageError(f"the manifest {path} does not exist")
        starts, at = array("q"), 0
        with open(self._path, "rb") as lines:
            for line in lines:
                if line.strip():
                    starts.append(at)
                at += len(line)
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: Any) -> Any:
        """The row at ``place``, or a list of rows for a slice."""
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        with open(self._path, "rb") as file:
            file.seek(self._starts[place])
            line = file.readline()
        row, problem = parse_row(line)
        if problem:
            number = self._number(self._starts[place])
            raise UsageError(f"{self._path}:{number} is {problem}; {_HINT}")
        return row

    def _number(self, start: int) -> int:
        """Which line, counted from one, begins at ``start``."""
        with open(self._path, "rb") as file:
            return file.read(start).count(b"\n") + 1


def parse_row(line: bytes) -> tuple[dict[str, Any], str]:
    """The row of a line; or {} and what the line is instead, to be said after "is"."""
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
        deep = isinstance(row, dict) and _is_deep(row)
        json.dumps(row, ensure_ascii=False).encode()  # halves of a character could not be printed
    except RecursionError:
        deep = True
    except ValueError as error:
        return {}, f"not valid JSON: {error}"
    if deep:
        return {}, f"not a row: nested deeper than {_DEEPEST} levels"
    if not isinstance(row, dict):
        return {}, f"not a JSON object but a {type(row).__name__}"
    return row, ""


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _is_deep(row: dict[str, Any]) -> bool:
    """Whether a row is nested deeper than any of ours; what recurses over it could not end."""
    level: list[Any] = [row]
    for _ in range(_DEEPEST):
        inner = [i for v in level for i in (v.values() if isinstance(v, dict) else v)]
        level = [i for i in inner if isinstance(i, dict | list)]
        if not level:
            return False
    return True


def write_manifest(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one row a line, whole or not at all."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))


def sound_path(path: str, root: str | Path) -> Path:
    """Where an audio part's ``path`` lies, which is below ``root``, the manifest's folder.

    Raises:
        UsageError: it leads out of the folder: a manifest from elsewhere may name any file.
    """
    root = Path(root)
    try:
        inside = (root / path).resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # a ring of links, a name no system can hold
        inside = False
    if not inside:
        raise UsageError(
            f"audio file {path!r} does not lie below {root}: "
            "copy it there and name it relative to the manifest"
        )
    return root / path


def clip(part: dict[str, Any], root: Path) -> Waveform:
    """The sound of an audio part at 16 kHz: ``path``, from ``start`` to ``end`` (s) if given."""
    if "path" not in part:
        raise UsageError(f"this audio part names no file: {json.dumps(part)[:120]}")
    return read_audio(
        sound_path(part["path"], root), start_s=part.get("start") or 0.0, end_s=part.get("end")
    )
