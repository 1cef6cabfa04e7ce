"""Datasets of the datasets library with a sound column, as ``save_to_disk`` or Parquet keeps them.

Sound is never decoded: a row brings the bytes of its file, or its path.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aqaa.data.formats.sounds import Names, Placed, Sounds, beside, clip_rows
from aqaa.errors import UsageError

TEXTS = ("text", "transcription", "transcript", "sentence", "normalized_text")
SPEAKERS = ("speaker", "speaker_id")
_STARTS = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3"}


def read(path: Path, sounds: Sounds) -> Iterator[Placed]:
    """One row a row; the splits of several, one after another."""
    names = Names()
    for split, table in _tables(path):
        table, column = _undecoded(table, path)
        for number, record in enumerate(table):
            place = f"{path}{split}: row {number}"
            given = record.get("id")
            if given is None:
                given = f"{path.stem}{split.replace('/', '-')}-{number:07}"
            name, meta = names(given, place)
            file = _file(record[column], name, path, place, sounds)
            row: dict[str, Any] = {"id": name, "kind": "audio", "audio": {"path": file}}
            if text := next((record[c] for c in TEXTS if record.get(c)), None):
                row |= {"kind": record.get("kind") or "asr", "text": str(text)}
            speaker = next((record[c] for c in SPEAKERS if record.get(c) is not None), None)
            if speaker is not None:
                row["speaker"] = str(speaker)
            yield Placed(place, {**row, "meta": meta} if meta else row)


def _tables(path: Path) -> Iterator[tuple[str, Any]]:
    from datasets import Dataset, DatasetDict, disable_progress_bars, load_from_disk

    disable_progress_bars()
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    try:
        if files:
            # In memory: nothing is left in the user's cache.
            from pyarrow import parquet

            for file in files:
                yield f"/{file.name}", Dataset(parquet.read_table(file))
            return
        found = load_from_disk(str(path))
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:160]
        raise UsageError(f"{path} is no dataset that can be read: {reason}") from None
    if isinstance(found, DatasetDict):
        yield from ((f"/{split}", table) for split, table in found.items())
    else:
        yield "", found


def _undecoded(table: Any, path: Path) -> tuple[Any, str]:
    """The table with its sound left as bytes and path, and the name of that column."""
    from datasets import Audio

    for name, feature in table.features.items():
        if isinstance(feature, Audio):
            return table.cast_column(name, Audio(decode=False)), str(name)
        if isinstance(feature, dict) and {"bytes", "path"} <= set(feature):
            return table, str(name)
    raise UsageError(f"{path} has no column of sound; it has {', '.join(table.features)}")


def _file(sound: Any, name: str, path: Path, place: str, sounds: Sounds) -> str:
    data, given = (sound or {}).get("bytes"), (sound or {}).get("path")
    if data is not None:
        suffix = Path(given).suffix if given else ""
        known = next((s for start, s in _STARTS.items() if data.startswith(start)), ".wav")
        return sounds.keep(f"{name}{suffix or known}", data)
    if not given:
        raise UsageError(f"{place} has neither the bytes of its sound nor a path")
    return beside(given, path if path.is_dir() else path.parent, place)


def write(rows: Iterable[Placed], name: str, sounds: Sounds) -> None:
    """Write the folder ``NAME``, each row with the bytes of its sound."""
    import pyarrow
    from datasets import Audio, Dataset, Features, Value, disable_progress_bars

    disable_progress_bars()
    text = Value("string")
    features = Features(
        {"id": text, "kind": text, "text": text, "speaker": text, "audio": Audio(decode=False)}
    )

    def records() -> Iterator[dict[str, Any]]:
        for _, row in clip_rows(rows, sounds, "hf"):
            part = row["audio"]
            if part.get("start") or part.get("end") is not None:
                sounds.lose("hf holds a stretch as a file of its own, without start and end")
            file = Path(sounds.alone(part, row["id"]))
            audio = {"path": file.name, "bytes": file.read_bytes()}
            kind = row.get("kind", "asr" if row.get("text") else "audio")
            yield {"id": row["id"], "kind": kind, "text": row.get("text"),
                   "speaker": row.get("speaker"), "audio": audio}  # fmt: skip

    # By Arrow: the library's own way in would ask a codec about sound that is not to be touched.
    table = pyarrow.Table.from_pylist(list(records()), schema=features.arrow_schema)
    Dataset(table).save_to_disk(str(sounds.folder / name))
