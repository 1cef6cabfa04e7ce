"""All that is wrong with a manifest, in one pass that writes nothing.

E001 bad JSON; E002 missing or unknown field; E003 role order; E004 audio file missing; E005 audio
unreadable, empty or not finite; E006 code out of range; E007 books not about 2:3; E008 id twice;
E009 chosen is rejected; E010 a pair's prompts differ; E011 empty target; E012 unknown label;
W101 rate below 16 kHz; W102 clipping or silence; W103 implausible pace; W104 too long; W105 same
sound twice; W106 a question that is trained on too. W102 and W105 need ``deep``.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aqaa.data.validate_rows import Labels, check_row
from aqaa.data.validate_sound import Ear, Place, place_of
from aqaa.errors import UsageError

TRAINING = "train.jsonl"
LABELS = "domain.json"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; codes that begin with E are errors, with W warnings."""

    file: str
    line: int
    id: str
    code: str
    message: str

    def __str__(self) -> str:
        """One line: ``file:line id code message``."""
        return f"{self.file}:{self.line} {self.id} {self.code} {self.message}"


def validate(*, manifest: str | Path, deep: bool = False, max_tokens: int = 8192) -> list[Finding]:
    """All findings of a manifest, in the order of its lines.

    A domain.json beside it names the speakers and styles that may occur, a train.jsonl the
    questions that must not.

    Args:
        manifest: the aqaa-jsonl file.
        deep: open every sound file.
        max_tokens: rows that would be longer are reported (W104).
    """
    path = Path(manifest)
    if not path.is_file():
        raise UsageError(f"the manifest {path} does not exist")
    trained = _trained(path) if path.name != TRAINING else frozenset()
    ear = Ear(root=path.parent, deep=deep, max_tokens=max_tokens, trained=trained)
    labels = _labels(path.parent / LABELS)
    findings: list[Finding] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        row, problem = _parsed(line)
        name = str(row.get("id", "-"))

        def add(code: str, message: str, number: int = number, name: str = name) -> None:
            findings.append(Finding(str(path), number, name, code, message))

        if problem:
            add("E001", problem)
            continue
        if "id" in row and first_line.setdefault(name, number) != number:
            add("E008", f"the id stands in line {first_line[name]} too")
        ear.check(check_row(row, labels, add), add)
    return findings


def _parsed(line: bytes) -> tuple[dict[str, Any], str]:
    """The row of a line, or {} and what is wrong with it."""
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return {}, f"not valid JSON: {error}"
    if not isinstance(row, dict):
        return {}, f"must be a JSON object, not {type(row).__name__}"
    return row, ""


def _labels(path: Path) -> Labels:
    """Labels that a corpus declares; any label where it declares none."""
    if not path.is_file():
        return Labels()
    declared, _ = _parsed(path.read_bytes())
    speakers, styles = declared.get("speakers"), declared.get("styles")
    return Labels(
        speakers=None if speakers is None else frozenset(speakers),
        styles=None if styles is None else frozenset(styles),
    )


def _trained(path: Path) -> frozenset[Place]:
    """Stretches of user audio in the training manifest beside ``path``."""
    training = path.with_name(TRAINING)
    if not training.is_file():
        return frozenset()
    found: set[Place] = set()
    for line in training.read_bytes().splitlines():
        row, _ = _parsed(line)
        rows = check_row(row, Labels(), _ignore) if row else None
        found.update(place_of(a.part) for a in (rows.audio if rows else []) if a.human)
    return frozenset(place for place in found if place[0])


def _ignore(code: str, message: str) -> None:
    """The training manifest has a validation of its own."""


def check(
    *, manifest: str | Path, deep: bool = False, as_json: bool = False, max_tokens: int = 8192
) -> None:
    """The verb: print all findings, one a line, then raise if there are errors.

    Args:
        manifest: the aqaa-jsonl file.
        deep: open every sound file.
        as_json: print JSON objects, one a line.
        max_tokens: rows that would be longer are reported.

    Raises:
        UsageError: there is at least one error; warnings alone pass.
    """
    findings = validate(manifest=manifest, deep=deep, max_tokens=max_tokens)
    for finding in findings:
        print(json.dumps(asdict(finding), ensure_ascii=False) if as_json else finding)
    errors = _count(findings, "E")
    summary = f"{errors} errors and {_count(findings, 'W')} warnings in {manifest}"
    if errors:
        raise UsageError(f"{summary}; mend the lines above")
    if not as_json:
        print(summary)


def _count(findings: Iterable[Finding], kind: str) -> int:
    return sum(finding.code.startswith(kind) for finding in findings)
