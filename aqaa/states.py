"""Folders of saved states: their names, which are whole, how one becomes whole and how one goes.

Nothing heavy is imported here: whether a run can be resumed is asked before its libraries load.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from aqaa.errors import UsageError
from aqaa.storage import MANIFEST

STATES = "checkpoints"
FORMAT = 1
STATE = "state"
SHARDED = "sharded"  # the part of a state that tells of its shards
MASTER = "fp32"  # what a shard calls the parameters, beside the moments of the optimizer
_NAME = re.compile(r"step_(\d{8,})")
_LINE = re.compile(r"([0-9a-f]{64})  ([\w.]+)")


def step_folder(folder: Path, step: int) -> Path:
    """Where the state before optimizer step ``step`` is kept."""
    return folder / f"step_{step:08d}"


def step_of(path: Path) -> int:
    """The optimizer step that a folder of :func:`saved_states` stands at."""
    match = _NAME.fullmatch(path.name)
    assert match, path
    return int(match[1])


def saved_states(folder: Path) -> list[Path]:
    """The whole ones, the latest first; nothing is read yet."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=step_of)[::-1]


def sweep(folder: Path) -> None:
    """Name and remove what a cut run had begun to write; for rank 0, before training starts.

    A state that was to be replaced, and was not, gets its name back.
    """
    for path in sorted(folder.glob(".step_*")):
        place = path.with_name(path.stem[1:])
        if path.suffix == ".before" and not place.exists():  # cut between the two names of seal
            os.replace(path, place)
            continue
        if path.suffix == ".writing":
            print(f"{path} was cut while it was written: not used", file=sys.stderr, flush=True)
        shutil.rmtree(path, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, str]:
    """SHA-256 by file name; strict to the byte.

    Raises:
        UsageError: no manifest, one that we did not write, or other files than it lists.
    """
    try:
        text = (folder / MANIFEST).read_bytes().decode()
        found = {match[2]: match[1] for match in map(_LINE.fullmatch, text.splitlines()) if match}
        names = {p.name for p in folder.iterdir()} - {MANIFEST}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{folder / MANIFEST} is damaged: {error}") from None
    if not found or text != "".join(f"{digest}  {name}\n" for name, digest in found.items()):
        raise UsageError(f"{folder / MANIFEST} is damaged: it is not a list of hashes and names")
    if names != set(found):
        wrong = min(names ^ set(found))
        raise UsageError(f"{folder} is damaged: {wrong} is missing or is not in {MANIFEST}")
    return found


def set_aside(damaged: list[Path]) -> None:
    """Give damaged states a name that nothing counts or reads."""
    for folder in damaged:
        aside = folder.with_name(f"damaged_{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)


def seal(temporary: Path, path: Path, lines: list[str]) -> None:
    """Write the manifest and give the folder its name, in an order that no power cut can turn."""
    write_synced(temporary / MANIFEST, "".join(f"{line}\n" for line in lines))
    _sync_folder(temporary)
    if path.exists():  # the same step again, after a resume: the same bytes
        gone = path.with_name(f".{path.name}.before")
        os.replace(path, gone)
        os.replace(temporary, path)
        shutil.rmtree(gone, ignore_errors=True)
    else:
        os.replace(temporary, path)
    _sync_folder(path.parent)


def write_synced(path: Path, text: str) -> None:
    """Write a text down to the disk."""
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def _sync_folder(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
