"""What readers and writers of formats share: rows with their place, sound files, what is lost."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aqaa.audio.file import cut_audio
from aqaa.data.validate_rows import Labels, check_row
from aqaa.errors import UsageError

CLIP_FIELDS = {"id", "kind", "text", "audio", "speaker"}
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST_NAME = 150


class Placed(NamedTuple):
    """A row of aqaa-jsonl whose sound paths are absolute, and where it stood: ``file:line``."""

    place: str
    row: dict[str, Any]


class Format(NamedTuple):
    """How a format is read and written; None where it is not.

    ``read(path, sounds)`` gives rows; ``write(rows, name, sounds)`` fills ``sounds.folder``, its
    main file named after ``name`` where the format leaves that open. ``embeds``: the written files
    hold the sound themselves.
    """

    read: "Callable[[Path, Sounds], Iterator[Placed]] | None"
    write: "Callable[[Iterable[Placed], str, Sounds], None] | None"
    embeds: bool = False


@dataclass
class Sounds:
    """Sound files of a conversion.

    Args:
        folder: where the result is being written.
        final: where it will lie once it is whole.
    """

    folder: Path
    final: Path
    lost: Counter[str] = field(default_factory=Counter)

    def lose(self, what: str) -> None:
        """Note that a row has something the format cannot hold."""
        self.lost[what] += 1

    def keep(self, name: str, data: bytes) -> str:
        """Write embedded sound below the result; its path."""
        path = self._fresh(name)
        path.write_bytes(data)
        return str(path)

    def bring(self, path: str) -> str:
        """The path of a sound file relative to the result, copied there as it is."""
        found = Path(path)
        if not found.is_relative_to(self.folder):
            copy = self.folder / "audio" / _copied_name(found)
            if not copy.exists():
                _copy(found, copy)
            found = copy
        return found.relative_to(self.folder).as_posix()

    def absolute(self, path: str) -> str:
        """Where a sound file lies once the result is in its place."""
        found = Path(path)
        if found.is_relative_to(self.folder):
            found = self.final / found.relative_to(self.folder)
        return str(found)

    def alone(self, part: dict[str, Any], name: str) -> str:
        """A file with exactly the sound of a part: its own, or one cut out sample by sample."""
        if not part.get("start") and part.get("end") is None:
            return str(part["path"])
        path = self._fresh(f"{name}.wav")
        cut_audio(part["path"], path, start_s=part.get("start") or 0.0, end_s=part.get("end"))
        return str(path)

    def clear(self) -> None:
        """Remove the sound files kept for writing: the result holds their sound itself."""
        shutil.rmtree(self.folder / "audio", ignore_errors=True)

    def _fresh(self, name: str) -> Path:
        """A path below audio/ that does not exist yet."""
        stem, suffix = os.path.splitext(_UNSAFE.sub("_", Path(name).name).lstrip(".") or "sound")
        path = self.folder / "audio" / f"{stem[:_LONGEST_NAME]}{suffix}"
        number = 0
        while path.exists():
            number += 1
            path = path.with_name(f"{stem[:_LONGEST_NAME]}-{number}{suffix}")
        path.parent.mkdir(exist_ok=True)
        return path


def _copied_name(path: Path) -> str:
    """A name that files of the same name in different folders do not share."""
    folder = _UNSAFE.sub("_", path.parent.as_posix().strip("/"))[-60:].lstrip(".")
    return f"{folder}-{_UNSAFE.sub('_', path.name)}"[-_LONGEST_NAME:].lstrip(".-")


def _copy(source: Path, copy: Path) -> None:
    """Copied, not linked: a finished folder's files get the rights of new files."""
    copy.parent.mkdir(exist_ok=True)
    try:
        shutil.copyfile(source, copy)
    except FileNotFoundError:
        raise UsageError(f"the sound file {source} does not exist") from None


def checked(placed: Placed) -> Placed:
    """A row that is right by the rules of aqaa-jsonl.

    Raises:
        UsageError: it is not; by file and line.
    """

    def refuse(code: str, message: str) -> None:
        raise UsageError(f"{placed.place} {code} {message}")

    check_row(placed.row, Labels(), refuse)
    return placed


def clip_rows(rows: Iterable[Placed], sounds: Sounds, name: str) -> Iterator[Placed]:
    """The rows that are one clip and perhaps its words; others are lost, as are fields beyond.

    Args:
        rows: of any kind.
        sounds: is told what is lost.
        name: of the format that holds only these.
    """
    for placed in rows:
        row = placed.row
        if "audio" not in row or "path" not in row["audio"]:
            sounds.lose(f"{name} holds clips and their words; dialogues, pairs and texts are lost")
            continue
        for field_ in sorted(set(row) - CLIP_FIELDS):
            sounds.lose(f"{name} has no place for {field_!r}")
        for field_ in sorted(set(row["audio"]) - {"type", "path", "start", "end", "text"}):
            sounds.lose(f"{name} has no place for {field_!r} of audio")
        yield placed


class Names:
    """Row ids: what others call a row, as a name of ours, each once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, given: Any, place: str) -> tuple[str, dict[str, Any]]:
        """The id, and fields for ``meta`` where the given name could not stay as it was."""
        name = str(given)
        safe = _UNSAFE.sub("_", name).lstrip(".")[:200] or "row"
        if safe in self._seen and safe == name:
            raise UsageError(f"{place}: the id {name} stands twice")
        number, free = 0, safe
        while free in self._seen:
            number += 1
            free = f"{safe}-{number}"
        self._seen.add(free)
        return free, ({} if free == name else {"id": name})


def beside(path: str, folder: Path, place: str) -> str:
    """The absolute path of a sound file that a file in ``folder`` names.

    Raises:
        UsageError: there is no such file.
    """
    found = Path(os.path.abspath(folder / path))
    if not found.is_file():
        raise UsageError(f"{place}: the sound file {found} does not exist")
    return str(found)


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Lines of a UTF-8 text file that are not empty, each with its ``file:line``."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    for number, line in enumerate(data.split(b"\n"), start=1):
        place = f"{path}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise UsageError(f"{place} is not UTF-8: {error}") from None
        if text:
            yield place, text
