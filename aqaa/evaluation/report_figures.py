"""Drawings of the report as inline SVG: curves, codebook usage, the lineage graph.

Colours are the page's CSS classes, so that they follow its light and dark scheme.
"""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

Points = list[tuple[float, float]]

PANELS_SHOWN = 9
POINTS_DRAWN = 160
LOG_FROM_RATIO = 12  # a curve that falls further than this is drawn on a log scale
_SPLIT = re.compile(
    r"^(train|valid(?:ation)?|val|test)[/_.]|[/_.](train|valid(?:ation)?|val|test)$"
)


def number(value: float) -> str:
    """A short form of ``value``: 1,234 / 12.3 / 0.045 / 3e-05."""
    size = abs(value)
    if value == int(value) and size < 1e6:
        return f"{int(value):,}"
    if size >= 1000:
        return f"{value:,.0f}" if size < 1e6 else f"{value:.2g}"
    if size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.3g}"


# ---- curves


def read_metrics(path: Path) -> dict[str, dict[str, Points]]:
    """Panel -> series -> (step, value) points of a ``metrics.csv``, empty cells skipped.

    ``train/loss`` and ``val/loss`` are two series of the panel ``loss``.
    """
    panels: dict[str, dict[str, Points]] = {}
    with open(path, newline="", encoding="utf-8") as handle:
        for place, row in enumerate(csv.DictReader(handle)):
            step = _finite(row.get("step"))
            for column, cell in row.items():
                value = _finite(cell)
                if column in ("step", "epoch", None) or value is None:
                    continue
                found = _SPLIT.search(column)
                series = "train" if not found or "train" in found[0] else "held out"
                panel = panels.setdefault(_SPLIT.sub("", column), {})
                panel.setdefault(series, []).append((place if step is None else step, value))
    return dict(sorted(panels.items(), key=lambda item: _rank(item[0])))


def _finite(cell: str | None) -> float | None:
    try:
        value = float(cell or "")
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _rank(name: str) -> tuple[int, str]:
    order = (name == "loss", "loss" in name, "acc" in name or "per" in name.split("_"))
    return (order.index(True) if any(order) else 4 if name.startswith("lr") else 3, name)


def curves(run: Path) -> str:
    """Small multiples of a run's metrics, or a sentence saying that there are none."""
    path = run / "metrics.csv" if run.is_dir() else run
    panels = read_metrics(path) if path.is_file() else {}
    if not panels:
        return '<p class="none">This run left no metrics.</p>'
    shown = list(panels.items())[:PANELS_SHOWN]
    rest = list(panels)[PANELS_SHOWN:]
    more = f'<p class="none">Not drawn: {escape(", ".join(rest))}.</p>' if rest else ""
    drawn = "".join(_panel(*item) for item in shown)
    return f'<div class="curves" tabindex="0" role="group" aria-label="Curves">{drawn}</div>{more}'


def _panel(name: str, series: Mapping[str, Points]) -> str:
    w, h, left, top, bottom = 300, 150, 44, 8, 22
    every = [point for points in series.values() for point in points]
    low, high = min(y for _, y in every), max(y for _, y in every)
    logarithmic = _falls_far(name, series, low, high)
    ticks = _log_ticks(low, high) if logarithmic else _ticks(low, high)
    bend = math.log10 if logarithmic else float
    bottom_y, top_y = bend(min(low, ticks[0])), bend(max(high, ticks[-1]))
    last = max(x for x, _ in every) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        share = (bend(y) - bottom_y) / ((top_y - bottom_y) or 1)
        return left + x / last * (w - left - 10), top + (1 - share) * (h - top - bottom)

    parts = []
    for tick in ticks:
        y = at(0, tick)[1]
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{w - 10}"/>')
        parts.append(
            f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    parts.append(f'<text x="{left}" y="{h - 6}">0</text>')
    parts.append(f'<text x="{w - 10}" y="{h - 6}" text-anchor="end">step {number(last)}</text>')
    for kind in ("train", "held out"):
        if kind in series:
            parts.append(_line(kind, [at(x, y) for x, y in thin(series[kind])]))
    ends = "; ".join(
        f"{kind} {number(points[0][1])} to {number(points[-1][1])}"
        for kind, points in series.items()
    )
    scale = "log" if logarithmic else ""
    title = escape(name.replace("_", " "))
    legend = "".join(
        f'<span class="{"train" if kind == "train" else "held"}">{kind} '
        f"{number(points[-1][1])}</span>"
        for kind, points in series.items()
    )
    return (
        f"<figure><figcaption><b>{title}</b><small>{scale}</small><p>{legend}</p></figcaption>"
        f'<svg viewBox="0 0 {w} {h}" role="img" aria-label="{title}: {ends}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _falls_far(name: str, series: Mapping[str, Points], low: float, high: float) -> bool:
    """Whether a log scale helps: losses do, shares that rise towards one and schedules do not."""
    falls = any(points[-1][1] < points[0][1] for points in series.values())
    return low > 0 and falls and high / low > LOG_FROM_RATIO and not name.startswith("lr")


def _line(kind: str, points: Points) -> str:
    name = "train" if kind == "train" else "held"
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dots = points if len(points) < 12 else points[-1:]
    circles = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>' for x, y in dots)
    return f'<g class="{name}"><path d="{d}"/>{circles}</g>'


def thin(points: Points) -> Points:
    """At most ``POINTS_DRAWN`` points: means of equal runs; the last point is kept as it is."""
    size = -(-len(points) // POINTS_DRAWN)
    if size == 1:
        return points
    bins = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    means = [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in bins]
    return [*means, points[-1]]


def _ticks(low: float, high: float) -> list[float]:
    if high == low:
        return [low]
    rough = (high - low) / 3
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.99)
    first = math.floor(low / step)
    return [round(i * step, 12) for i in range(first, math.ceil(high / step - 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**i for i in range(first, last + 1, max(1, (last - first) // 3))]


# ---- codebooks


def perplexity(counts: Sequence[int]) -> float:
    """How many equally used codes would be as varied as these: e to the entropy of the shares."""
    total = sum(counts)
    shares = [count / total for count in counts if count]
    return math.exp(-sum(share * math.log(share) for share in shares)) if shares else 0.0


def codebook(name: str, counts: Sequence[int]) -> str:
    """Counts sorted from the commonest code, on a log scale, and how many codes are in use.

    ``name`` is the book, and after a comma what was counted.
    """
    used = sum(count > 0 for count in counts)
    if not used:
        return (
            f'<figure class="book"><p class="none">No {escape(name)} code was counted.</p></figure>'
        )
    w, h, left, top, bottom = 560, 190, 54, 10, 26
    ranked = sorted(counts, reverse=True)
    ceiling = max(1.0, math.ceil(math.log10(ranked[0] + 1)))
    columns = min(len(ranked), 256)
    width = (w - left - 10) / columns
    bars = []
    for i in range(columns):
        part = ranked[i * len(ranked) // columns : (i + 1) * len(ranked) // columns]
        mean = sum(part) / len(part)
        tall = math.log10(mean + 1) / ceiling * (h - top - bottom)
        if tall > 0:
            bars.append(
                f"M{left + i * width:.1f} {h - bottom}v{-tall:.1f}h{width + 0.3:.2f}v{tall:.1f}z"
            )
    ticks = []
    for power in range(int(ceiling) + 1):
        y = h - bottom - math.log10(10**power + 1) / ceiling * (h - top - bottom)
        if y >= top - 4:
            ticks.append(f'<path class="grid" d="M{left} {y:.1f}H{w - 10}"/>')
            ticks.append(
                f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{10**power:,}</text>'
            )
    said = (
        f"{used:,} of {len(counts):,} codes used · perplexity {perplexity(counts):,.0f} · "
        f"{sum(counts):,} tokens"
    )
    return (
        f'<figure class="book {escape(name.partition(",")[0])}"><figcaption><b>{escape(name)}</b>'
        f"<span>{said}</span></figcaption>"
        f'<svg viewBox="0 0 {w} {h}" role="img" aria-label="{escape(name)} codebook: {said}">'
        f'{"".join(ticks)}<path class="bars" d="{"".join(bars)}"/>'
        f'<text x="{left}" y="{h - 8}">commonest code</text>'
        f'<text x="{w - 10}" y="{h - 8}" text-anchor="end">code {len(counts):,}</text>'
        "</svg></figure>"
    )
