"""Run folders and where they came from.

A run folder holds config.yaml, parents.json, lineage.json, metrics.csv, checkpoints/ and model/,
which is sealed by its MANIFEST.sha256. lineage.json is written last: without it a run was cut.
"""

import hashlib
import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aqaa.errors import UsageError
from aqaa.storage import (
    content_hash,
    read_json,
    sha256_file,
    tree_hash,
    verify_manifest,
    write_json,
    write_manifest,
)

RECORD = "lineage.json"
PARENTS = "parents.json"
MODEL = "model"
METRICS = "metrics.csv"
ORGANS = ("tokenizer", "backbone", "vocoder")  # folders of a whole model
WEIGHTS = "model.safetensors"
IDS = "aqaa.json"  # in the folder of a backbone: what its ids mean


@dataclass(frozen=True)
class Parent:
    """A folder something was made from, and the hash of its content.

    ``verified`` is False where it has no manifest of ours to be checked against.
    """

    path: str
    hash: str
    verified: bool


@dataclass(frozen=True)
class Lineage:
    """What a finished run says of itself.

    ``fingerprint`` names everything that decided the result: settings, parents' content.
    """

    stage: str
    run: str
    parents: dict[str, Parent]
    fingerprint: str
    steps: int
    seconds: float
    parameters: int
    versions: dict[str, str] = field(default_factory=dict)


def parent(path: str | Path, known: Mapping[Path, str] = MappingProxyType({})) -> Parent:
    """Check a folder (a run's model or anything with a manifest) and name its content.

    Args:
        path: the folder.
        known: SHA-256 of files that were hashed as they were read.

    Raises:
        UsageError: it does not exist, or its manifest does not fit its files.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist: run the stage that makes it first")
    owner = path if tree_hash(path) else path.parent
    if not tree_hash(owner):
        return Parent(str(path), content_hash(path, known), False)
    return Parent(str(path), verify_manifest(owner, known=known), True)


def fingerprint(settings: dict[str, Any], parents: dict[str, Parent]) -> str:
    """Hash of what decides a run's result."""
    content = {"settings": settings, "parents": {k: p.hash for k, p in parents.items()}}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read_lineage(run: str | Path) -> Lineage | None:
    """The record of a finished run, None where the folder is missing or the run was cut."""
    path = Path(run) / RECORD
    if not path.is_file():
        return None
    record = read_json(path)
    try:
        parents = {name: Parent(**value) for name, value in record.pop("parents").items()}
        return Lineage(parents=parents, **record)
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a lineage record of this version: {error}") from None


def finish(run: str | Path, lineage: Lineage, *, sealed: bool = False) -> None:
    """Seal a run folder: manifest of the model (if it is not ``sealed`` yet), then the record."""
    run = Path(run)
    if (run / MODEL).is_dir() and not sealed:
        write_manifest(run / MODEL)
    write_json(run / RECORD, asdict(lineage))


def finish_at_once(
    run: Path, *, stage: str, settings: dict[str, Any], parents: dict[str, Parent],
    begun_s: float, parameters: int, sealed: bool = False,
) -> None:  # fmt: skip
    """Seal a run that took no steps: a merge, an import.

    Args:
        run: its folder.
        stage: its name.
        settings: what it was told.
        parents: what it was made from.
        begun_s: when it began, by the monotonic clock.
        parameters: of what it made.
        sealed: the model has its manifest already.
    """
    record = Lineage(
        stage=stage,
        run=run.name,
        parents=parents,
        fingerprint=fingerprint(settings, parents),
        steps=0,
        seconds=time.monotonic() - begun_s,
        parameters=parameters,
        versions=versions(),
    )
    finish(run, record, sealed=sealed)


def versions() -> dict[str, str]:
    """Versions of this code and of the packages that decide numbers."""
    found = {}
    for name in ("aqaa", "torch", "lightning", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    if commit := _commit(Path(__file__)):
        found["commit"] = commit
    return found


def _commit(file: Path) -> str:
    """Commit of the checkout that ``file`` belongs to, ``-dirty`` where files of it were changed.

    '' for an installed package or no git.
    """
    # A package installed inside somebody's repository lies there without being of it.
    ask = ["git", "-C", str(file.parent)]
    tracked = [*ask, "ls-files", "--error-unmatch", file.name]
    changes = [*ask, "status", "--porcelain", "--untracked-files=no"]
    head = [*ask, "rev-parse", "--short=12", "HEAD"]
    said = []
    for command in (tracked, changes, head):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return ""
        if done.returncode != 0:
            return ""
        said.append(done.stdout.strip())
    return f"{said[2]}-dirty" if said[1] else said[2]


def tokenizer_hash(folder: str | Path) -> str:
    """One hash for both books: codes, stores and models made with another are meaningless.

    Raises:
        UsageError: a book is missing.
    """
    return books_hash(*(Path(folder) / book for book in ("linguistic", "semantic")))


def books_hash(*books: str | Path) -> str:
    """The same of the folder of each book.

    Raises:
        UsageError: a book is missing.
    """
    for folder in map(Path, books):
        if not (folder / WEIGHTS).is_file():
            raise UsageError(
                f"{folder.parent} does not hold both speech tokenizers: "
                f"{folder / WEIGHTS} is missing"
            )
    return "-".join(sha256_file(Path(folder) / WEIGHTS)[:12] for folder in books)
