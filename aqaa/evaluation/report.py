"""The report of a run: one HTML file to open from disk, with its sounds and pictures inside.

Nothing in it asks another host for anything; the page's own policy forbids it.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from aqaa.evaluation.measure import main_model
from aqaa.evaluation.report_cards import card, choose, hear
from aqaa.evaluation.report_figures import codebook, curves
from aqaa.evaluation.report_lineage import lineage
from aqaa.evaluation.report_page import (
    breakdown,
    controls,
    headlines,
    parts,
    percent,
    settings,
    stages,
)
from aqaa.storage import write_text

FILE = "report.html"
MAX_BYTES = 7_500_000  # still opens at once from a phone's storage
TEMPLATE = Path(__file__).with_name("report.html")


def write_report(
    *,
    folder: Path,
    results: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    runs: Mapping[str, Path],
    extra: Mapping[str, Any],
    shown: int = 24,
) -> Path:
    """Write ``folder/report.html``; what is missing is said to be missing.

    Args:
        folder: where the report goes; the rows' sounds lie below ``extra["sounds"]`` or here.
        results: the figures, control, stages, seed and versions of ``results.json``.
        answers: judged answer rows of one or several models.
        runs: stage -> run folder with its ``metrics.csv``.
        extra: ``sounds``, ``settings`` {name: value} and ``codebooks`` {book: counts}, each of
            which may be absent.
        shown: how many questions get a card.
    """
    main = main_model(answers)
    rows = [row for row in answers if row["model"] == main]
    sounds = Path(extra.get("sounds", folder))
    books = "".join(
        codebook(book, counts) for book, counts in (extra.get("codebooks") or {}).items()
    )
    fields = {
        "lead": _lead(results, rows),
        "hear": hear(rows, sounds),
        "headlines": headlines(results),
        "controls": controls(results.get("control") or {}),
        "parts": parts(results, main),
        "breakdown": breakdown(results),
        "curves": _curves(runs),
        "codebooks": books or '<p class="none">No code was counted in this run.</p>',
        "lineage": lineage(results.get("stages") or []),
        "stages": stages(results.get("stages") or []),
        "settings": settings(results, extra),
    }
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    bare = len(template.substitute(fields, cards="", shown="").encode())
    fields["cards"], fields["shown"] = _cards(rows, sounds, shown, MAX_BYTES - bare)
    path = Path(folder) / FILE
    write_text(path, template.substitute(fields))
    return path


def _lead(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "No question was answered in this run."
    value = results.get("answers_correct")
    speed = _speed(rows)
    if value is None:
        return f"{len(rows):,} questions were answered; they were not judged.{speed}"
    return (
        f"{len(rows):,} questions, asked by voices the model never heard, were answered aloud. "
        f"A recogniser understood the right answer in {percent(value)} of them.{speed}"
    )


def _speed(rows: Sequence[Mapping[str, Any]]) -> str:
    """How long answers took to make, and how long they sound."""
    took = [row["seconds"] for row in rows if row.get("seconds") is not None]
    lasts = [row["duration_s"] for row in rows if row.get("duration_s")]
    said = f" An answer took {sum(took) / len(took):.2f} s to make" if took else ""
    if lasts:
        said += f"{' and' if took else ' An answer'} lasts {sum(lasts) / len(lasts):.2f} s"
    return f"{said} on average." if said else ""


def _cards(
    rows: Sequence[Mapping[str, Any]], folder: Path, shown: int, room_bytes: int
) -> tuple[str, str]:
    """The cards that fit, and a sentence on how they were chosen."""
    made: list[str] = []
    for row in choose(rows, shown):
        html = card(row, folder)
        room_bytes -= len(html.encode())
        if room_bytes < 0:
            break
        made.append(html)
    if not made:
        return "", "There is no answer to show."
    wrong = sum('<article class="card wrong"' in html for html in made)
    all_wrong = sum(
        row.get("heard") is not None and row["heard"] != row["expected"] for row in rows
    )
    said = (
        f"{len(made)} of {len(rows):,} held-out questions: {wrong} of the {all_wrong:,} mistakes "
        f"first, then {len(made) - wrong} others, spread over families and styles."
    )
    return "".join(made), said


def _curves(runs: Mapping[str, Path]) -> str:
    drawn = [
        f"<section class=run><h3>{escape(stage.replace('_', ' '))}</h3>"
        f"{curves(Path(run))}</section>"
        for stage, run in runs.items()
    ]
    return "".join(drawn) or '<p class="none">No stage was trained in this run.</p>'
