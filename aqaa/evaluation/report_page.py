"""The report's headline, tables and settings as HTML."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from aqaa.evaluation.measure import (
    CONTROL_FLOORS,
    FLOORS,
    METRICS,
    MODELS,
    RESYNTHESIS_FLOOR,
    Figure,
    Floor,
)
from aqaa.evaluation.report_lineage import duration, size

Results = Mapping[str, Any]

HEADLINES = {
    "answers_correct": ("Answers correct", "the spoken answer is recognised as the right one"),
    "text_correct": ("Text correct", "the written answer is the expected one"),
    "text_audio_agreement": ("Text and speech agree", "what is heard is what was written"),
    "ground_truth_recognised": ("Original clips recognised", "the judge's own ceiling"),
    "resynthesis_recognised": ("Resynthesis recognised", "original tokens through the vocoder"),
    "tokenizer_ceiling": (
        "Tokenizer ceiling",
        "questions told apart from their codes, no backbone",
    ),
}
MODEL_NAMES = {"merge": "merged", "sft_1": "SFT 1", "sft_2": "SFT 2", "dpo": "DPO"}
# What each model set out from, and so must not fall below.
BASES = {"sft_2": ("sft_1",), "dpo": ("sft_1",), "merge": ("sft_1", "sft_2", "dpo")}


def percent(value: float | None) -> str:
    """``91.2 %``."""
    return "–" if value is None else f"{100 * value:.1f} %".replace("100.0 %", "100 %")


def interval(figure: Figure) -> str:
    """``87.9–93.8`` in percent, or nothing."""
    ends = figure.get("ci95")
    return f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}" if ends else ""


def detail(results: Results, key: str) -> Figure:
    """The figure behind ``key``; a bare flat value where no detail was kept."""
    found = (results.get("details") or {}).get(key)
    if found is not None:
        return dict(found)
    value = results.get(key)
    return {"value": value, "n": 0, "ci95": None, "reason": "not measured in this run"}


# ---- headline


def headlines(results: Results) -> str:
    """The six figures as a list, each with interval, floor and bar."""
    return f'<ul class="heads">{"".join(_headline(results, key) for key in HEADLINES)}</ul>'


def _headline(results: Results, key: str) -> str:
    name, meaning = HEADLINES[key]
    figure = detail(results, key)
    value, floor = figure["value"], _floor(results, key)
    said = ""
    if value is None:
        said = f"not measured: {escape(figure.get('reason', 'no reason was kept'))}"
    elif figure.get("ci95"):
        said = f"<span>95 % interval {interval(figure)} %</span><span>n = {figure['n']:,}</span>"
    if floor is not None:
        said += f"<span>floor {percent(floor)} {_met(value, floor)}</span>"
    return (
        f"<li><h3>{name}</h3><p class=big>{percent(value)}</p><p class=meaning>{meaning}</p>"
        f"{_bar(figure, floor)}<p class=fine>{said}</p></li>"
    )


def _met(value: float | None, floor: float) -> str:
    if value is None:
        return ""
    return '<b class="yes">✓ met</b>' if value >= floor else '<b class="no">✗ missed</b>'


def _floor(results: Results, key: str) -> float | None:
    if key == "resynthesis_recognised":
        truth = detail(results, "ground_truth_recognised")["value"]
        return None if truth is None else RESYNTHESIS_FLOOR * truth
    return FLOORS.get(key)


def _bar(figure: Figure, floor: float | None = None) -> str:
    """Interval, value and floor on a line from 0 to 1; the numbers stand beside it as text."""
    if figure["value"] is None:
        return '<div class="bar" aria-hidden="true"></div>'
    low, high = figure.get("ci95") or (figure["value"], figure["value"])
    tick = "" if floor is None else f'<u style="left:{100 * floor:.1f}%"></u>'
    return (
        f'<div class="bar" aria-hidden="true"><s style="left:{100 * low:.1f}%;'
        f'width:{100 * (high - low):.1f}%"></s>{tick}'
        f'<b style="left:{100 * figure["value"]:.1f}%"></b></div>'
    )


# ---- the merged model beside its parts


def parts(results: Results, main: str) -> str:
    """One row a model: the best of each column marked, and what fell below its origin."""
    models = [m for m in MODELS if _model_figure(results, m, main, "answers_correct")["n"]]
    if not models:
        return '<p class="none">No model was judged.</p>'
    best = {
        metric: max(_model_figure(results, m, main, metric)["value"] or 0 for m in models)
        for metric in METRICS
    }
    notes = {m: _hurt(results, m, main, models) for m in models}
    rows = "".join(_model_row(results, m, main, best, bool(notes[m])) for m in models)
    heads = "".join(f"<th scope=col>{HEADLINES[metric][0]}</th>" for metric in METRICS)
    said = (
        "".join(f'<li class="no">{escape(note)}</li>' for m in models for note in notes[m])
        or '<li class="yes">No step fell below the model it began from.</li>'
    )
    return (
        '<div class="scroll"><table class="models"><thead><tr><th scope=col>Model</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div><ul class=notes>{said}</ul>"
    )


def _model_figure(results: Results, model: str, main: str, metric: str) -> Figure:
    return detail(results, metric if model == main else f"{model}.{metric}")


def _model_row(
    results: Results, model: str, main: str, best: Mapping[str, float], hurt: bool
) -> str:
    cells = []
    for metric in METRICS:
        figure = _model_figure(results, model, main, metric)
        first = figure["value"] is not None and figure["value"] == best[metric]
        mark = ' <span class="best">best</span>' if first else ""
        cells.append(
            f"<td{' class=first' if first else ''}>"
            f"<span class=num>{percent(figure['value'])}</span>{mark}"
            f"<small>{interval(figure)}</small></td>"
        )
    n = _model_figure(results, model, main, "answers_correct")["n"]
    name = escape(MODEL_NAMES.get(model, model))
    name += ' <span class="hurt">hurt</span>' if hurt else ""
    return f"<tr><th scope=row>{name}<small>n = {n:,}</small></th>{''.join(cells)}</tr>"


def _hurt(results: Results, model: str, main: str, models: Sequence[str]) -> list[str]:
    """Sentences on where ``model`` answers worse than what it began from."""
    mine = _model_figure(results, model, main, "answers_correct")
    found = []
    for base in BASES.get(model, ()):
        theirs = _model_figure(results, base, main, "answers_correct")
        if base not in models or mine["value"] is None or theirs["value"] is None:
            continue
        lost = theirs["value"] - mine["value"]
        if lost > 0:
            clear = mine["ci95"][1] < theirs["ci95"][0]
            certainty = "the intervals do not touch" if clear else "the intervals overlap"
            found.append(
                f"{MODEL_NAMES.get(model, model)} is hurt: {100 * lost:.1f} points of answers "
                f"correct below {MODEL_NAMES.get(base, base)} ({certainty})."
            )
    return found


# ---- voice control


def controls(control: Mapping[str, Figure]) -> str:
    """Duration and pitch of each style against the plain answer, beside the floor."""
    if not control:
        return '<p class="none">Voice control was not measured in this run.</p>'
    rows = "".join(
        _control_row(style, floor, control.get(style)) for style, floor in CONTROL_FLOORS.items()
    )
    return (
        "<table class=control><thead><tr><th scope=col>Asked to speak</th>"
        "<th scope=col>Duration</th><th scope=col>Pitch</th><th scope=col>Floor</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _control_row(style: str, floor: Floor, figure: Figure | None) -> str:
    figure = figure or {"n": 0, "reason": "not measured"}
    value = figure.get(floor.figure)
    sign, name = ("≤" if floor.at_most else "≥"), floor.figure.split("_")[0]
    name = "pitch" if name == "f0" else name
    verdict = '<span class="none">–</span>'
    if value is not None:
        met = floor.met(value)
        verdict = f'<span class="{"yes" if met else "no"}">{"✓" if met else "✗"}</span>'
    cells = "".join(
        f"<td{' class=first' if key == floor.figure else ''}>{_times(figure.get(key))}</td>"
        for key in ("duration_ratio", "f0_ratio")
    )
    reason = f"<small>{escape(figure['reason'])}</small>" if figure.get("reason") else ""
    return (
        f"<tr><th scope=row>{style}<small>n = {figure['n']:,}</small>{reason}</th>{cells}"
        f"<td>{verdict} <small>{name} {sign} {floor.bound}</small></td></tr>"
    )


def _times(value: float | None) -> str:
    return "–" if value is None else f"× {value:.2f}"


# ---- where the mistakes are


def breakdown(results: Results) -> str:
    """Answers correct by combination, family and style, weakest first within each."""
    groups = {
        "Combination": [
            ("held out", detail(results, "answers_correct.held_out")),
            ("trained", detail(results, "answers_correct.trained")),
        ],
        "Family": _group(results, "answers_correct.family."),
        "Style": _group(results, "answers_correct.style."),
    }
    tables = []
    for title, figures in groups.items():
        rows = "".join(_breakdown_row(name, figure) for name, figure in figures if figure["n"])
        if rows:
            tables.append(
                f"<table class=break><caption>{title}</caption><thead class=hidden>"
                f"<tr><th>{title}</th><th>Share</th><th>Value</th></tr></thead>"
                f"<tbody>{rows}</tbody></table>"
            )
    inside = "".join(tables) or '<p class="none">No answer was judged.</p>'
    return f'<div class="breaks">{inside}</div>'


def _group(results: Results, prefix: str) -> list[tuple[str, Figure]]:
    details = results.get("details") or {}
    found = [
        (key[len(prefix) :], figure) for key, figure in details.items() if key.startswith(prefix)
    ]
    return sorted(found, key=lambda item: (item[1]["value"] is None, item[1]["value"], item[0]))


def _breakdown_row(name: str, figure: Figure) -> str:
    return (
        f"<tr><th scope=row>{escape(name)}</th><td>{_bar(figure)}</td>"
        f"<td><span class=num>{percent(figure['value'])}</span>"
        f"<small><span class=nowrap>{interval(figure)}</span> "
        f"<span class=nowrap>n = {figure['n']:,}</span></small></td></tr>"
    )


# ---- stages and settings


def stages(rows: Sequence[Mapping[str, Any]]) -> str:
    """Steps, time and size of each stage."""
    body = ""
    for row in rows:
        name = escape(str(row["stage"]).replace("_", " "))
        steps = f"{row['steps']:,}" if row.get("steps") else "–"
        body += (
            f"<tr><th scope=row>{name}</th><td>{steps}</td><td>{duration(row.get('seconds'))}</td>"
            f"<td>{size(row.get('parameters'))}</td></tr>"
        )
    if not body:
        return ""
    return (
        "<table class=stages><thead><tr><th scope=col>Stage</th><th scope=col>Steps</th>"
        "<th scope=col>Time</th><th scope=col>Size</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def settings(results: Results, extra: Mapping[str, Any]) -> str:
    """Seed, versions and whatever else the caller names, as a definition list."""
    facts: dict[str, Any] = {"seed": results.get("seed", "not kept")}
    facts |= {name: version for name, version in (results.get("versions") or {}).items()}
    facts |= dict(extra.get("settings") or {})
    items = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
    )
    return f'<dl class="facts">{items}</dl>'
