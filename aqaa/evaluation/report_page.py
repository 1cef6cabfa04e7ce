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
    pairs,
    sign_test,
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
CHANCE_P = 0.05  # from here on a difference may well be chance


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
    """One row a model, the main one's figure on the same questions in it; the paired counts."""
    models = [m for m in MODELS if _model_figure(results, m, main, "answers_correct")["n"]]
    if not models:
        return '<p class="none">No model was judged.</p>'
    notes = [note for pair in pairs(models) if (note := _note(results, *pair))]
    hurt = {model for model, is_hurt, _ in notes if is_hurt}
    rows = "".join(_model_row(results, m, main, m in hurt) for m in models)
    heads = "".join(f"<th scope=col>{HEADLINES[metric][0]}</th>" for metric in METRICS)
    said = "".join(
        f'<li class="{"no" if is_hurt else "yes"}">{escape(note)}</li>'
        for _, is_hurt, note in notes
    )
    return (
        '<div class="scroll"><table class="models"><thead><tr><th scope=col>Model</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div><ul class=notes>{said}</ul>"
    )


def _model_figure(results: Results, model: str, main: str, metric: str) -> Figure:
    return detail(results, metric if model == main else f"{model}.{metric}")


def _model_row(results: Results, model: str, main: str, hurt: bool) -> str:
    cells, n = [], 0
    for metric in METRICS:
        mine = detail(results, f"{model}.{metric}.beside.{main}")
        theirs = detail(results, f"{main}.{metric}.beside.{model}")
        beside, first = "", False
        if mine["value"] is None or theirs["value"] is None:
            mine = _model_figure(results, model, main, metric)
        else:
            first = mine["value"] > theirs["value"]
            beside = f"<small>{escape(_name(main))} {percent(theirs['value'])}</small>"
        n = n or mine["n"]
        cells.append(
            f"<td{' class=first' if first else ''}><span class=num>{percent(mine['value'])}</span>"
            f"<small>{interval(mine)}</small>{beside}</td>"
        )
    name = escape(_name(model)) + (' <span class="hurt">hurt</span>' if hurt else "")
    return f"<tr><th scope=row>{name}<small>n = {n:,}</small></th>{''.join(cells)}</tr>"


def _note(results: Results, model: str, origin: str) -> tuple[str, bool, str] | None:
    """The model, whether it answers worse than what it set out from, and the counts behind it."""
    won = detail(results, f"{model}.answers_correct.over.{origin}")
    lost = detail(results, f"{origin}.answers_correct.over.{model}")
    if won["value"] is None or lost["value"] is None:
        return None
    wins, losses = (round(figure["value"] * figure["n"]) for figure in (won, lost))
    p = sign_test(wins, losses)
    verdict = "neither is ahead"
    if wins != losses:
        verdict = f"{_name(model)} is {'hurt' if losses > wins else 'ahead'}"
        verdict += ", which may be chance" if p >= CHANCE_P else ""
    chance = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    counts = (
        f"{wins:,} only {_name(model)} got right, {losses:,} only {_name(origin)} "
        f"(sign test, {chance})"
    )
    asked = f"{_name(model)} and {_name(origin)}, the same {won['n']:,} questions"
    return model, losses > wins, f"{asked}: {counts}: {verdict}."


def _name(model: str) -> str:
    return MODEL_NAMES.get(model, model)


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
