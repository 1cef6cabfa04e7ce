"""aqaa-jsonl: one JSON object a line; the paths in it are relative to the manifest's folder."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aqaa.audio.file import read_audio
from aqaa.errors import UsageError
from aqaa.signals import Waveform
from aqaa.storage import write_text


def read_manifest(path: str | Path) -> list[dict[str, Any]]:
    """All rows of a manifest; blank lines are skipped.

    Raises:
        UsageError: no such file, or a line that is no JSON object, by its number.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"the manifest {path} does not exist")
    rows = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                rows.append(_row(line, f"{path}:{number}"))
    return rows


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{place} is not valid JSON: {error}; `aqaa data validate` lists all findings"
        ) from None
    if not isinstance(row, dict):
        raise UsageError(f"{place} must be a JSON object, not {type(row).__name__}")
    return row


def write_manifest(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one row a line, whole or not at all."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))


def clip(part: dict[str, Any], root: Path) -> Waveform:
    """The sound of an audio part at 16 kHz: ``path``, from ``start`` to ``end`` (s) if given."""
    if "path" not in part:
        raise UsageError(f"this audio part names no file: {json.dumps(part)[:120]}")
    return read_audio(
        Path(root) / part["path"], start_s=part.get("start") or 0.0, end_s=part.get("end")
    )
