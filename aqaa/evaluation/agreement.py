"""Does the speech of a model say what it writes, check by check of a training: table, page, sounds.

Below a run folder, ``agreement/``: ``table.csv`` with a row a prompt and check, ``page.html`` with
the same and the last answers to hear, ``step_N/audio/`` with every sound.
"""

import csv
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aqaa.data.corpus import Corpus
from aqaa.evaluation.infer import infer
from aqaa.evaluation.judge import Ear, judge
from aqaa.evaluation.measure import own_words, spoken_right, text_right
from aqaa.evaluation.report import TEMPLATE
from aqaa.evaluation.report_cards import card
from aqaa.pipeline import Pipeline
from aqaa.storage import atomic_path, write_text

FOLDER, TABLE, PAGE = "agreement", "table.csv", "page.html"
COLUMNS = (
    *("step", "id", "question_text", "expected", "text", "heard", "agrees", "text_right"),
    *("spoken_right", "answer"),
)
FIGURES = ("agrees", "text_right", "spoken_right")

Row = Mapping[str, Any]


def hear_prompts(
    pipeline: Pipeline,
    corpus: Corpus,
    rows: list[dict[str, Any]],
    *,
    ear: Ear,
    run: Path,
    step: int,
) -> list[dict[str, Any]]:
    """Let a model answer the prompts, an ear hear its answers, and add them to a run's table.

    Args:
        pipeline: the model.
        corpus: where the prompts' sound lies.
        rows: the prompts.
        ear: samples (T,) at 16 kHz to the sentence heard.
        run: the run folder.
        step: optimizer steps taken so far; what the table holds of this step or later ones, which
            a cut run has left, is replaced.

    Returns:
        The judged answers, with ``agrees``, ``text_right`` and ``spoken_right``; ``answer`` is a
        WAV below the run's ``agreement`` folder, '' where nothing was said.
    """
    folder, name = run / FOLDER, f"step_{step:08d}"
    answered = infer(pipeline, corpus, rows, model="answer", out=folder / name)
    found = []
    for row in judge(answered, ear, folder / name):
        verdicts = (own_words(row), text_right(row), spoken_right(row))
        sounds = {k: f"{name}/{row[k]}" if row[k] else "" for k in ("question", "answer")}
        found.append({**row, **sounds, "step": step, **dict(zip(FIGURES, verdicts, strict=True))})
    kept = [row for row in read_table(run) if int(row["step"]) < step]
    _write(folder, [*kept, *found], found)
    return found


def read_table(run: Path) -> list[dict[str, str]]:
    """Rows of a run's table, none where there is none yet."""
    path = run / FOLDER / TABLE
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def shares(rows: Sequence[Row]) -> dict[str, float]:
    """Of each figure, the share of answers for which it holds."""
    return {name: sum(bool(row[name]) for row in rows) / len(rows) for name in FIGURES}


def _write(folder: Path, rows: Sequence[Row], last: Sequence[Row]) -> None:
    with atomic_path(folder / TABLE) as temporary, open(temporary, "w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    write_text(folder / PAGE, _page(folder, rows, last))


def _page(folder: Path, rows: Sequence[Row], last: Sequence[Row]) -> str:
    style = TEMPLATE.read_text("utf-8").partition("<style>")[2].partition("</style>")[0]
    body = "".join(_line(row) for row in reversed(rows))
    cards = "".join(card(row, folder) for row in last)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
        "style-src 'unsafe-inline'; img-src data:; media-src data: 'self'\">"
        f"<title>Written and heard</title><style>{style}</style></head><body>"
        '<header class="top wrap"><h1>Written and heard</h1><p class="lead">The same questions at '
        "every check: what the model writes beside what a recogniser hears of its speech.</p>"
        f'</header><main class="wrap"><section><h2>At step {last[0]["step"]}</h2>'
        f'<div class="cards">{cards}</div></section><section><h2>All checks</h2>'
        '<div class="sheet scroll"><table><thead><tr><th scope=col>Step</th><th scope=col>Question'
        "</th><th scope=col>Wrote</th><th scope=col>Heard</th><th scope=col>Agree</th><th scope="
        f"col>Sound</th></tr></thead><tbody>{body}</tbody></table></div></section></main></body>"
        "</html>\n"
    )


def _line(row: Row) -> str:
    agrees = str(row["agrees"]) == "True"
    mark = '<span class="yes">✓</span>' if agrees else '<span class="no">✗</span>'
    said = "".join(f"<td>{escape(str(row[k]))}</td>" for k in ("question_text", "text", "heard"))
    sound = escape(str(row["answer"]))
    player = f'<audio controls preload="none" src="{sound}"></audio>' if sound else "nothing"
    return f"<tr><th scope=row>{row['step']}</th>{said}<td>{mark}</td><td>{player}</td></tr>"
