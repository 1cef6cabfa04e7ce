"""The report on two books as one HTML page: language in one column, what is not in the other."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from aqaa.evaluation.report import FILE, TEMPLATE
from aqaa.evaluation.report_figures import codebook, curves, number
from aqaa.evaluation.report_page import percent

__all__ = ["FILE", "page"]
BOOKS = ("linguistic", "semantic")
_SHARE, _VARIANCE = "of the codes", "of the variance"
PROBES = {
    "phone": ("Which phone is said", _SHARE),
    "label": ("Which label is said", _SHARE),
    "voicing": ("Voiced or not", _SHARE),
    "pitch": ("Pitch, where voiced", _VARIANCE),
    "energy": ("Level", _VARIANCE),
    "speaker": ("Who speaks", "of the clips"),
    "emotion": ("Emotion or style", "of the clips"),
}
ERRORS = {
    "continuous": "Errors of what the encoder writes",
    "codes": "Errors of what is written from codes alone",
    "against_own": "Codes against the encoder's own transcript",
}
_USAGE = {
    "codes": "Codes in the book",
    "rate_hz": "Codes a second",
    "used": "Codes that occurred",
    "dead": "Codes that never did",
    "perplexity": "Perplexity",
    "bits_per_s": "Bits a second",
}


def page(record: Mapping[str, Any], runs: Mapping[str, Path]) -> str:
    """The page of a ``report.json``; ``runs`` are the run folders the books came from."""
    style = TEMPLATE.read_text("utf-8").partition("<style>")[2].partition("</style>")[0]
    held = record["clips"] - record["fitted"]
    lead = (
        f"{record['clips']} clips ({record['seconds'] / 60:.1f} min) that neither tokenizer was "
        f"trained on. Probes are linear maps in closed form, fitted to {record['fitted']} of them "
        f"and read on the other {held}; a ceiling is the same probe before the codebook. When a "
        "phone is said (English) tells a recogniser of its own by forced alignment; when a label "
        f"({escape(record['labels'])}) is, the tokenizer's best alignment of the transcript."
    )
    books = "".join(codebook(book, record[book]["counts"]) for book in BOOKS)
    drawn = "".join(
        f"<section class=run><h3>{book}</h3>{curves(runs[book])}</section>" for book in BOOKS
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>What the codes know</title><style>{style}</style></head><body>"
        f'<header class="top wrap"><h1>What the codes know</h1><p class="lead">{lead}</p></header>'
        f'<main class="wrap"><section><h2>Language, and what is not language</h2>'
        f'<div class="sheet scroll">{_table(record)}</div></section>'
        f'<section><h2>Codebook usage</h2><div class="two sheet">{books}</div></section>'
        f'<section><h2>Curves</h2><div class="sheet">{drawn}</div></section></main>'
        "<footer class=wrap></footer></body></html>\n"
    )


def _table(record: Mapping[str, Any]) -> str:
    heads = "".join(f"<th scope=col>{book.capitalize()} book</th>" for book in BOOKS)
    rows = [_row(PROBES[p][0], [_probe(record[b]["probes"][p], PROBES[p][1]) for b in BOOKS])
            for p in PROBES]  # fmt: skip
    rows += [_row(said, [_error(record[b]["errors"], name) for b in BOOKS])
             for name, said in ERRORS.items()]  # fmt: skip
    rows += [_row(said, [number(record[b][name]) for b in BOOKS]) for name, said in _USAGE.items()]
    return f"<table><thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(name: str, cells: list[str]) -> str:
    return f"<tr><th scope=row>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _probe(figure: Mapping[str, Any], unit: str) -> str:
    if figure["codes"] is None:
        return f"<small>not measured: {escape(figure['reason'])}</small>"
    return (
        f"<b>{percent(figure['codes'])}</b><small>{unit}; chance {percent(figure['chance'])}, "
        f"ceiling {percent(figure['ceiling'])}, n = {figure['n']:,}</small>"
    )


def _error(errors: Mapping[str, Any], name: str) -> str:
    if errors.get(name) is None:
        return f"<small>not measured: {escape(errors.get('reason', 'no transcripts'))}</small>"
    return f"<b>{percent(errors[name])}</b><small>n = {errors['n']:,}</small>"
