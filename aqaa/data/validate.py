"""All that is wrong with a manifest, in one pass that writes nothing.

E001 bad JSON; E002 missing, unknown or unfit field; E003 role order; E004 audio file missing or
outside the manifest's folder; E005 audio unreadable, empty or not finite; E006 code out of range;
E007 books not about 2:3; E008 id twice; E009 chosen is rejected; E010 a pair's prompts differ; E011
empty target; E012 unknown label; W101 rate below 16 kHz; W102 clipping or silence; W103 implausible
pace; W104 too long; W105 same sound twice; W106 a question that is trained on too. W102 and W105
need ``deep``.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from aqaa.data.manifest import parse_row
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
        text = f"{self.file}:{self.line} {self.id} {self.code} {self.message}"
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


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
    findings: list[Finding] = []
    labels = _labels(path.parent / LABELS, findings)
    first_line: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        row, problem = parse_row(line)
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


def _labels(path: Path, findings: list[Finding]) -> Labels:
    """Labels that a corpus declares; any label where it declares none."""
    if not path.is_file():
        return Labels()
    declared, problem = parse_row(path.read_bytes())
    if problem:
        findings.append(Finding(str(path), 1, "-", "E001", problem))
    known: dict[str, frozenset[str] | None] = {}
    for key in ("speakers", "styles"):
        names = declared.get(key)
        fits = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if names is not None and not fits:
            message = f"field {key!r} must be a list of texts"
            findings.append(Finding(str(path), 1, "-", "E002", message))
        known[key] = frozenset(names) if isinstance(names, list) and fits else None
    return Labels(**known)


def _trained(path: Path) -> frozenset[Place]:
    """Stretches of user audio in the training manifest beside ``path``."""
    training = path.with_name(TRAINING)
    if not training.is_file():
        return frozenset()
    found: set[Place] = set()
    for line in training.read_bytes().splitlines():
        row, _ = parse_row(line)
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
