"""Lhotse's JSON lines, plain or gzipped: cuts, or recordings with their supervisions.

Read as plain JSON: the package is not needed. A supervision is a row.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aqaa.audio.file import file_duration_s, file_rate_hz
from aqaa.data.formats.sounds import Names, Placed, Sounds, beside, clip_rows
from aqaa.data.manifest import parse_row
from aqaa.errors import UsageError
from aqaa.storage import atomic_path

_DIGITS = 9  # of a second: finer than a sample of any rate
Record = dict[str, Any]


def read(path: Path, sounds: Sounds) -> Iterator[Placed]:
    """Rows of a file of cuts, or of a folder with ``*recordings*`` and ``*supervisions*``."""
    names = Names()
    for place, supervision, recording, start_s in _supervisions(path):
        part = _part(supervision, recording, start_s, place)
        name, meta = names(supervision.get("id"), place)
        custom = supervision.get("custom")
        kind = custom.get("kind") if isinstance(custom, dict) else None
        row: Record = {"id": name, "kind": "audio", "audio": part}
        if supervision.get("text"):
            row |= {"kind": kind or "asr", "text": supervision["text"]}
        if supervision.get("speaker") is not None:
            row["speaker"] = str(supervision["speaker"])
        yield Placed(place, {**row, "meta": meta} if meta else row)


def _supervisions(path: Path) -> Iterator[tuple[str, Record, Record, float]]:
    """Place, supervision, recording, and what to add to the supervision's start."""
    if path.is_file():
        yield from _of_cuts(path)
        return
    found = {kind: sorted(path.glob(f"*{kind}*.jsonl*")) for kind in
             ("cuts", "recordings", "supervisions")}  # fmt: skip
    if not found["recordings"] or not found["supervisions"]:
        if not found["cuts"]:
            raise UsageError(f"{path} holds neither cuts nor recordings with supervisions")
        for file in found["cuts"]:
            yield from _of_cuts(file)
        return
    recordings = {r.get("id"): r for file in found["recordings"] for _, r in _lines(file)}
    for file in found["supervisions"]:
        for place, supervision in _lines(file):
            recording = recordings.get(supervision.get("recording_id"))
            if recording is None:
                raise UsageError(
                    f"{place}: the recording {supervision.get('recording_id')!r} is not listed"
                )
            yield place, supervision, recording, 0.0


def _of_cuts(file: Path) -> Iterator[tuple[str, Record, Record, float]]:
    for place, cut in _lines(file):
        kind = cut.get("type", "MonoCut")
        if kind not in ("MonoCut", "MultiCut") or not isinstance(cut.get("recording"), dict):
            raise UsageError(f"{place}: a {kind} without a recording of its own is not read")
        supervisions = cut.get("supervisions") or [
            {"id": cut.get("id"), "start": 0.0, "duration": cut.get("duration")}
        ]
        for supervision in supervisions:  # their times count from the cut's start
            yield place, supervision, cut["recording"], _seconds(cut.get("start", 0.0), place)


def _lines(file: Path) -> Iterator[tuple[str, Record]]:
    opened: Any = gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb")
    number = 0
    try:
        with opened as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    record, problem = parse_row(line)
                    if problem:
                        raise UsageError(f"{file}:{number} is {problem}")
                    yield f"{file}:{number}", record
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{file}:{number} cannot be read on: {error}") from None


def _part(supervision: Record, recording: Record, start_s: float, place: str) -> dict[str, Any]:
    listed = recording.get("sources")
    sources = [s for s in listed if isinstance(s, dict)] if isinstance(listed, list) else []
    kinds = [s.get("type") for s in sources]
    if kinds != ["file"]:
        raise UsageError(f"{place}: sound of {kinds} is not read, one file is")
    channels = sources[0].get("channels") or [0]
    wanted = supervision.get("channel", 0)
    if len(channels) > 1 and wanted != channels:
        raise UsageError(
            f"{place}: channel {wanted} of {len(channels)} is wanted; write it to a file first"
        )
    file = beside(str(sources[0].get("source")), Path(), place)
    start = round(start_s + _seconds(supervision.get("start", 0.0), place), _DIGITS)
    end = round(start + _seconds(supervision.get("duration"), place), _DIGITS)
    length_s = _seconds(recording.get("duration"), place)
    half_sample_s = 0.5 / _seconds(recording.get("sampling_rate"), place)
    if start < half_sample_s and abs(end - length_s) < half_sample_s:
        return {"path": file}
    return {"path": file, "start": max(0.0, start), "end": min(end, length_s)}


def _seconds(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise UsageError(f"{place}: {value!r} is no number of seconds or samples")
    return float(value)


def write(rows: Iterable[Placed], name: str, sounds: Sounds) -> None:
    """Write ``NAME_recordings.jsonl.gz`` and ``NAME_supervisions.jsonl.gz``."""
    recordings: dict[str, Record] = {}
    supervisions = []
    for _, row in clip_rows(rows, sounds, "lhotse"):
        part = row["audio"]
        path = sounds.absolute(part["path"])
        if path not in recordings:
            recordings[path] = _recording(f"{row['id']}-file", part["path"], path)
        recording = recordings[path]
        start_s = part.get("start") or 0.0
        end_s = recording["duration"] if part.get("end") is None else part["end"]
        supervision = {
            "id": row["id"], "recording_id": recording["id"], "start": start_s,
            "duration": round(end_s - start_s, _DIGITS), "channel": 0,
            "custom": {"kind": row.get("kind", "asr" if row.get("text") else "audio")},
        }  # fmt: skip
        for field in ("text", "speaker"):
            if field in row:
                supervision[field] = row[field]
        supervisions.append(supervision)
    for kind, records in (("recordings", recordings.values()), ("supervisions", supervisions)):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with atomic_path(sounds.folder / f"{name}_{kind}.jsonl.gz") as temporary:
            temporary.write_bytes(gzip.compress(lines.encode(), mtime=0))


def _recording(name: str, file: str, path: str) -> Record:
    rate_hz, duration_s = file_rate_hz(file), file_duration_s(file)
    return {
        "id": name,
        "sources": [{"type": "file", "channels": [0], "source": path}],
        "sampling_rate": rate_hz,
        "num_samples": round(duration_s * rate_hz),
        "duration": duration_s,
    }
