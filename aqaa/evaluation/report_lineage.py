"""The lineage graph of the report: which stage began from which, top to bottom, as inline SVG."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from aqaa.evaluation.report_figures import number

NODE_W, NODE_H, GAP_X, GAP_Y, WIDTH = 108, 50, 12, 34, 372


def duration(seconds: float | None) -> str:
    """``48 s``, ``4 min 10 s``, ``3 h 5 min``."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(parameters: float | None) -> str:
    """``1.38 M``."""
    if not parameters:
        return "–"
    if parameters >= 1e9:
        return f"{parameters / 1e9:.3g} B"
    return f"{parameters / 1e6:.3g} M" if parameters >= 1e6 else f"{parameters / 1e3:.3g} k"


def ancestry(stages: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Stage -> the stages it began from; an ancestor of another parent is left out.

    Parents may be named by stage, by run, or by the run's folder.
    """
    names = {}
    for stage in stages:
        run = str(stage.get("run") or "")
        for alias in (run, run.rstrip("/").rsplit("/", 1)[-1], stage["stage"]):
            names[alias] = stage["stage"]
    parents: dict[str, list[str]] = {}
    for stage in stages:
        given = [str(parent).rstrip("/") for parent in stage.get("parents") or []]
        known = [names.get(parent, names.get(parent.rsplit("/", 1)[-1], "")) for parent in given]
        parents[stage["stage"]] = [n for n in dict.fromkeys(known) if n and n != stage["stage"]]

    def above(name: str, seen: frozenset[str] = frozenset()) -> set[str]:
        found: set[str] = set()
        for parent in parents.get(name, []):
            if parent not in seen:
                found |= {parent} | above(parent, seen | {name})
        return found

    return {
        name: [p for p in mine if not any(p in above(other) for other in mine if other != p)]
        for name, mine in parents.items()
    }


def _depths(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    depth = dict.fromkeys(parents, 0)
    for _ in parents:  # as many rounds as stages settle any order, and end even on a cycle
        for name, mine in parents.items():
            depth[name] = min(len(parents), max((depth[p] + 1 for p in mine), default=0))
    return depth


def _places(parents: Mapping[str, Sequence[str]]) -> dict[str, tuple[float, float]]:
    """Top left corner of every stage; a layer is ordered by where its parents stand."""
    depth = _depths(parents)
    children = {name: [c for c, mine in parents.items() if name in mine] for name in parents}
    places: dict[str, tuple[float, float]] = {}
    layers = sorted(set(depth.values()))
    for row, layer in enumerate(layers):
        names = [name for name in parents if depth[name] == layer]

        def wish(name: str) -> float:
            at = [places[p][0] for p in parents[name] if p in places]
            if at:
                return sum(at) / len(at)
            # A root stands near those who share its children: the more of them, the more central.
            return -len(children[name])

        names.sort(key=wish)
        span = len(names) * NODE_W + (len(names) - 1) * GAP_X
        for i, name in enumerate(names):
            x = (WIDTH - span) / 2 + i * (NODE_W + GAP_X)
            places[name] = (x, 6 + row * (NODE_H + GAP_Y))
    return places


def lineage(stages: Sequence[Mapping[str, Any]]) -> str:
    """The graph, or a sentence when there is no stage to draw."""
    if not stages:
        return '<p class="none">No stage is on record.</p>'
    parents = ancestry(stages)
    places = _places(parents)
    edges = []
    for name, mine in parents.items():
        for parent in mine:
            (x0, y0), (x1, y1) = places[parent], places[name]
            x0, y0, x1 = x0 + NODE_W / 2, y0 + NODE_H, x1 + NODE_W / 2
            bend = (y1 - y0) / 2
            edges.append(
                f'<path class="edge" d="M{x0:.0f} {y0:.0f}C{x0:.0f} {y0 + bend:.0f} '
                f'{x1:.0f} {y1 - bend:.0f} {x1:.0f} {y1 - 3:.0f}" marker-end="url(#tip)"/>'
            )
    nodes = [_node(stage, *places[stage["stage"]]) for stage in stages]
    told = "; ".join(
        f"{name} from {' and '.join(mine)}" if mine else f"{name} from scratch"
        for name, mine in parents.items()
    )
    height = max(y for _, y in places.values()) + NODE_H + 8
    left = min(0.0, *(x - 4 for x, _ in places.values()))
    return (
        f'<svg class="lineage" viewBox="{left:.0f} 0 {WIDTH - 2 * left:.0f} {height:.0f}" '
        f'role="img" aria-label="Lineage: {escape(told)}"><defs>'
        '<marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" '
        'orient="auto"><path d="M0 0L8 4L0 8z"/></marker>'
        f"</defs>{''.join(edges)}{''.join(nodes)}</svg>"
    )


def _node(stage: Mapping[str, Any], x: float, y: float) -> str:
    name = str(stage["stage"])
    head, _, tail = name.partition("_")
    title = f"{head} {tail}" if len(name) < 13 else head
    second = (
        f'<tspan x="{x + NODE_W / 2:.0f}" dy="13">{escape(tail)}</tspan>'
        if title == head and tail
        else ""
    )
    steps = stage.get("steps")
    facts = " · ".join(
        part
        for part in (
            f"{number(steps)} steps" if steps else "",
            "" if second else size(stage.get("parameters")),
        )
        if part and part != "–"
    )
    top = 17 if second else 21
    return (
        f'<g class="node {escape(head)}"><rect x="{x:.0f}" y="{y:.0f}" width="{NODE_W}" '
        f'height="{NODE_H}" rx="9"/><text x="{x + NODE_W / 2:.0f}" y="{y + top:.0f}">'
        f'<tspan class="name">{escape(title)}</tspan>'
        f"{second.replace('<tspan ', '<tspan class=name ') if second else ''}</text>"
        f'<text class="facts" x="{x + NODE_W / 2:.0f}" y="{y + (43 if second else 37):.0f}">'
        f"{facts}</text></g>"
    )
