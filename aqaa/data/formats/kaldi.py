"""A Kaldi data folder: wav.scp, text, utt2spk, and segments where an utterance is a stretch."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aqaa.audio.file import file_duration_s
from aqaa.data.formats.sounds import Names, Placed, Sounds, beside, clip_rows, lines_of
from aqaa.errors import UsageError
from aqaa.storage import write_text

_Table = dict[str, tuple[str, str]]  # by name: the rest of its line, and file:line


def read(path: Path, sounds: Sounds) -> Iterator[Placed]:
    """One asr row an utterance, one of kind audio where it has no words."""
    if not (path / "wav.scp").is_file():
        raise UsageError(f"{path} holds no wav.scp: it is not a Kaldi data folder")
    recordings = _table(path / "wav.scp")
    for name, (value, place) in recordings.items():
        if value.endswith("|") or value.startswith("|"):
            raise UsageError(
                f"{place}: {name} is a command, not a file, and no command is run; "
                "write its sound to a file first"
            )
        if value == "-" or (value.rpartition(":")[2].isdigit() and not Path(value).exists()):
            raise UsageError(f"{place}: {name} is no sound file of its own: {value}")
    segments = _table(path / "segments") if (path / "segments").is_file() else None
    text, speakers = (
        _table(path / file) if (path / file).is_file() else {} for file in ("text", "utt2spk")
    )
    names = Names()
    utterances = recordings if segments is None else segments
    for file, table in (("text", text), ("utt2spk", speakers)):
        if strangers := sorted(set(table) - set(utterances)):
            place = table[strangers[0]][1]
            raise UsageError(f"{place}: {strangers[0]} of {file} is no utterance")
    for name, (value, place) in utterances.items():
        part = _whole(recordings, name) if segments is None else _segment(value, place, recordings)
        part["path"] = beside(part["path"], Path(), place)
        own, meta = names(name, place)
        row: dict[str, Any] = {"id": own, "kind": "audio", "audio": part}
        if name in text:
            row |= {"kind": "asr", "text": text[name][0]}
        if name in speakers:
            row["speaker"] = speakers[name][0]
        yield Placed(place, {**row, "meta": meta} if meta else row)


def _table(path: Path) -> _Table:
    found: _Table = {}
    for place, line in lines_of(path):
        name, *rest = line.split(maxsplit=1)
        if not rest:
            raise UsageError(f"{place}: {name} stands alone")
        if name in found:
            raise UsageError(f"{place}: {name} stands twice, first in {found[name][1]}")
        found[name] = (rest[0], place)
    return found


def _whole(recordings: _Table, name: str) -> dict[str, Any]:
    return {"path": recordings[name][0]}


def _segment(value: str, place: str, recordings: _Table) -> dict[str, Any]:
    words = value.split()
    try:
        recording, start_s, end_s = words[0], float(words[1]), float(words[2])
    except (IndexError, ValueError):
        raise UsageError(f"{place} is not: utterance, recording, start and end in s") from None
    if recording not in recordings:
        raise UsageError(f"{place}: {recording} does not stand in wav.scp")
    if end_s == -1.0:  # to its end
        return {"path": recordings[recording][0], "start": start_s}
    return {"path": recordings[recording][0], "start": start_s, "end": end_s}


def write(rows: Iterable[Placed], name: str, sounds: Sounds) -> None:
    """Write the folder's files, sorted as Kaldi's tools want them."""
    files: dict[str, dict[str, str]] = {f: {} for f in ("wav.scp", "text", "utt2spk", "segments")}
    recordings: dict[str, str] = {}
    stretches: dict[str, tuple[str, float, float | None]] = {}
    for _, row in clip_rows(rows, sounds, "kaldi"):
        if row.get("kind") == "tts":
            sounds.lose("kaldi does not tell 'tts' from 'asr'")
        path = sounds.absolute(row["audio"]["path"])
        stretches[row["id"]] = (
            path, row["audio"].get("start") or 0.0, row["audio"].get("end")
        )  # fmt: skip
        recordings.setdefault(path, row["id"])
        if row.get("text"):
            files["text"][row["id"]] = " ".join(row["text"].split())
        # An utterance without a speaker is its own, as Kaldi has it.
        files["utt2spk"][row["id"]] = row.get("speaker", row["id"])
    whole = all(not start and end is None for _, start, end in stretches.values())
    for utterance, (path, start, end) in stretches.items():
        if whole:
            files["wav.scp"][utterance] = path
            continue
        recording = f"{recordings[path]}-file"
        files["wav.scp"][recording] = path
        end = file_duration_s(path) if end is None else end
        files["segments"][utterance] = f"{recording} {start!r} {end!r}"
    for file, table in files.items():
        if table:
            lines = sorted(f"{key} {value}\n" for key, value in table.items())
            write_text(sounds.folder / file, "".join(lines))
