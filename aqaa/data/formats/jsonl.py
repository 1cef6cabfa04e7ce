"""aqaa-jsonl itself: sound below the manifest's folder, named relative to it."""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path

from aqaa.data.formats.sounds import Placed, Sounds, beside, checked
from aqaa.data.manifest import parse_row, sound_path, write_manifest
from aqaa.data.row_sounds import sounds as sounds_of
from aqaa.errors import UsageError


def read(path: Path, sounds: Sounds) -> Iterator[Placed]:
    """Rows of a manifest."""
    if not path.is_file():
        raise UsageError(f"{path} is not a manifest: give the .jsonl file")
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            place = f"{path}:{number}"
            row, problem = parse_row(line)
            if problem:
                raise UsageError(f"{place} is {problem}")
            checked(Placed(place, row))
            for part in (sound.part for sound in sounds_of(row)):
                if "path" in part:
                    found = sound_path(part["path"], path.parent)
                    part["path"] = beside(str(found.absolute()), path.parent, place)
            yield Placed(place, row)


def write(rows: Iterable[Placed], name: str, sounds: Sounds) -> None:
    """Write ``NAME.jsonl``."""

    def brought() -> Iterator[dict]:
        for placed in rows:
            row = copy.deepcopy(placed.row)
            for part in (sound.part for sound in sounds_of(row)):
                if "path" in part:
                    part["path"] = sounds.bring(part["path"])
            yield row

    write_manifest(sounds.folder / f"{name}.jsonl", brought())
