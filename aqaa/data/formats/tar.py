"""Tar shards in WebDataset's manner: files of one sample share a name up to its first dot.

A sample of ours is the row as ``NUMBER.json`` and its sound as ``NUMBER.0.wav`` and so on; of
others, a sound file with its words in ``.txt``, or in ``.json`` under ``text``. Nothing is ever
unpacked to where a member says.
"""

import copy
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from aqaa.data.formats.sounds import Names, Placed, Sounds, checked
from aqaa.data.manifest import parse_row
from aqaa.data.row_sounds import sounds as sounds_of
from aqaa.errors import UsageError

SHARD_BYTES = 1_000_000_000
_LARGEST_MEMBER_BYTES = 2_000_000_000
_SOUND = (".wav", ".flac", ".mp3", ".ogg", ".opus")
Sample = dict[str, bytes]  # by member name


def read(path: Path, sounds: Sounds) -> Iterator[Placed]:
    """Rows of a shard, or of every ``*.tar`` of a folder."""
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not shards:
        raise UsageError(f"{path} holds no *.tar")
    names = Names()
    for shard in shards:
        for place, sample in _samples(shard):
            yield _row(place, sample, names, sounds)


def _samples(shard: Path) -> Iterator[tuple[str, Sample]]:
    """Members that share a name, and where they stand; members of a sample stand together."""
    current, sample = "", Sample()
    try:
        with tarfile.open(shard, "r") as archive:
            for member in archive:
                place = f"{shard}:{member.name[:200]!r}"
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise UsageError(f"{place} leads out of the archive: it is not read")
                if member.isdir():
                    continue
                if not member.isreg() or member.size > _LARGEST_MEMBER_BYTES:
                    raise UsageError(f"{place} is a link, a device or too large: it is not read")
                key = str(name.parent / name.name.split(".")[0])
                if key != current and sample:
                    yield f"{shard}:{current!r}", sample
                    sample = {}
                current = key
                handle = archive.extractfile(member)
                assert handle is not None
                sample[name.name] = handle.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(f"{shard} is damaged or no tar archive: {error}") from None
    if sample:
        yield f"{shard}:{current!r}", sample


def _row(place: str, sample: Sample, names: Names, sounds: Sounds) -> Placed:
    described = next((data for name, data in sample.items() if name.endswith(".json")), b"{}")
    record, problem = parse_row(described)
    if problem:
        raise UsageError(f"{place} is {problem}")
    heard = {n: data for n, data in sample.items() if n.lower().endswith(_SOUND)}
    if "id" in record and ({"audio", "messages", "chosen"} & set(record) or not heard):
        row = checked(Placed(place, record)).row
        kept: dict[str, str] = {}
        for part in (sound.part for sound in sounds_of(row)):
            if (member := part.get("path")) is None:
                continue
            if member not in heard:
                raise UsageError(f"{place} names {member!r}, which is not in the sample")
            if member not in kept:
                kept[member] = sounds.keep(member, heard[member])
            part["path"] = kept[member]
        return Placed(place, row)
    if len(heard) != 1:
        raise UsageError(f"{place} has {len(heard)} sound files: one is needed")
    member, data = next(iter(heard.items()))
    words = next((d for n, d in sample.items() if n.endswith(".txt")), b"")
    text = words.decode("utf-8", "replace").strip() or record.get("text") or ""
    name, meta = names(member.split(".")[0], place)
    row = {"id": name, "kind": "asr" if text else "audio",
           "audio": {"path": sounds.keep(member, data)}}  # fmt: skip
    if text:
        row["text"] = text
    return Placed(place, {**row, "meta": meta} if meta else row)


def write(rows: Iterable[Placed], name: str, sounds: Sounds) -> None:
    """Write ``NAME-000000.tar`` and so on, each about a gigabyte."""
    archive: tarfile.TarFile | None = None
    number = held_bytes = 0
    for place, (_, row) in enumerate(rows):
        members = _members(row, f"{place:09}", sounds)
        if archive is None or held_bytes > SHARD_BYTES:
            if archive is not None:
                archive.close()
            archive = tarfile.open(sounds.folder / f"{name}-{number:06}.tar", "w")
            number, held_bytes = number + 1, 0
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            held_bytes += len(data)
            archive.addfile(info, io.BytesIO(data))
    if archive is not None:
        archive.close()


def _members(row: dict[str, Any], key: str, sounds: Sounds) -> Sample:
    row, found = copy.deepcopy(row), Sample()
    for number, part in enumerate(sound.part for sound in sounds_of(row)):
        if (path := part.get("path")) is None:
            continue
        if part.get("start") or part.get("end") is not None:
            sounds.lose("tar holds a stretch as a file of its own, without start and end")
        file = Path(sounds.alone(part, key))
        part.pop("start", None)
        part.pop("end", None)
        part["path"] = f"{key}.{number}{file.suffix}"
        found[part["path"]] = file.read_bytes()
        if str(file) != path:
            file.unlink()  # cut for this member alone
    described = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    return {f"{key}.json": described, **found}
