"""Figures with their uncertainty: what share of the answers is right, and does the voice obey.

A figure is ``{"value", "n", "ci95", "split"}``. What could not be measured is None with a
``reason``, never 0. An answer row is one line of an evaluation's ``answers.jsonl``.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqaa.audio.file import read_audio
from aqaa.errors import UsageError
from aqaa.evaluation.prosody import Prosody, median_f0_hz, spoken_duration_s
from aqaa.signals import QUESTION_RATE_HZ

Row = Mapping[str, Any]
Figure = dict[str, Any]

MERGED = "merge"
MODELS = (MERGED, "sft_1", "sft_2", "dpo")
# What each model set out from, and so must not fall below.
ORIGINS = {"sft_2": ("sft_1",), "dpo": ("sft_1",), MERGED: ("sft_1", "sft_2", "dpo")}
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Floor:
    """What a control figure must reach: at least ``bound``, or at most where ``at_most``."""

    figure: str
    bound: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Whether ``value`` reaches the floor."""
        return value <= self.bound if self.at_most else value >= self.bound


FLOORS = {"answers_correct": 0.85, "text_correct": 0.94, "text_audio_agreement": 0.90}
RESYNTHESIS_FLOOR = 0.95  # as a share of what is recognised of the original clips
CONTROL_FLOORS = {
    "slow": Floor("duration_ratio", 1.25),
    "quick": Floor("duration_ratio", 0.85, at_most=True),
    "high": Floor("f0_ratio", 1.2),
    "low": Floor("f0_ratio", 0.9, at_most=True),
}


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of ``k`` successes in ``n`` trials."""
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"{k} successes in {n} trials have no interval")
    share, shrink = k / n, 1 + Z95**2 / n
    centre = share + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    low = 0.0 if k == 0 else (centre - half) / shrink
    high = 1.0 if k == n else (centre + half) / shrink
    return low, high


def figure(k: int, n: int, split: str) -> Figure:
    """The share ``k / n`` with its interval; None with the reason when ``n`` is 0."""
    if n == 0:
        return unmeasured("no rows to measure", split)
    low, high = wilson(k, n)
    return {"value": k / n, "n": n, "ci95": [round(low, 4), round(high, 4)], "split": split}


def unmeasured(reason: str, split: str) -> Figure:
    """A figure that could not be taken, and why."""
    return {"value": None, "n": 0, "ci95": None, "split": split, "reason": reason}


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p of so uneven a split by fair coin (McNemar's test, ties left out)."""
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**n)


def split_label(split: str) -> str:
    """A split of the corpus as figures name it, with whose voices ask in it."""
    return f"{split}, {'training' if split == 'train' else 'unseen'} voices"


# ---- answers


def text_right(row: Row) -> bool:
    """The written answer is the expected one."""
    return bool(row["text"] == row["expected"])


def spoken_right(row: Row) -> bool:
    """The spoken answer is recognised as the expected one."""
    return bool(row["heard"] == row["expected"])


def own_words(row: Row) -> bool:
    """The spoken answer is recognised as what the model wrote (which an empty text never is)."""
    return bool(row["heard"] == row["text"] != "")


METRICS: dict[str, Callable[[Row], bool]] = {
    "answers_correct": spoken_right,
    "text_correct": text_right,
    "text_audio_agreement": own_words,
}


def main_model(rows: Iterable[Row]) -> str:
    """The model the headline is about: the merged one where there is one, else the first."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    return MERGED if MERGED in names or not names else names[0]


def summarise(
    rows: list[dict[str, Any]], *, split: str = "test"
) -> tuple[dict[str, float | None], dict[str, Figure]]:
    """Flat headline values of the main model, and every figure behind them.

    Keys of the details: ``METRIC``, ``METRIC.held_out``, ``METRIC.trained``,
    ``METRIC.family.NAME``, ``METRIC.style.NAME`` for the main model, ``MODEL.METRIC`` with
    ``.held_out`` and ``.trained`` for the others, and what :func:`paired` adds.

    Args:
        rows: judged answer rows.
        split: the corpus split whose questions they answer.
    """
    main, label = main_model(rows), split_label(split)
    mine = [row for row in rows if row["model"] == main]
    details: dict[str, Figure] = {}
    for metric in METRICS:
        details |= _combinations(metric, metric, mine, label)
        for kind in ("family", "style"):
            for name in sorted({row[kind] for row in mine}):
                part = [row for row in mine if row[kind] == name]
                details[f"{metric}.{kind}.{name}"] = _share(metric, part, f"{label}, {kind} {name}")
    for model in dict.fromkeys(row["model"] for row in rows if row["model"] != main):
        theirs = [row for row in rows if row["model"] == model]
        for metric in METRICS:
            details |= _combinations(f"{model}.{metric}", metric, theirs, label)
    details |= paired(rows, label)
    return {metric: details[metric]["value"] for metric in METRICS}, details


def paired(rows: list[dict[str, Any]], label: str) -> dict[str, Figure]:
    """Each model beside what it set out from, on exactly the questions both answered.

    Models may have answered different numbers of questions, and only these compare.
    ``MODEL.METRIC.beside.OTHER`` is MODEL's share of them, ``MODEL.METRIC.over.OTHER`` the share
    that MODEL got right and OTHER did not; both are kept either way round.
    """
    asked: dict[str, dict[Any, Row]] = {}
    for row in rows:
        asked.setdefault(row["model"], {})[row["id"]] = row
    details = {}
    for pair in pairs(asked):
        shared = [name for name in asked[pair[0]] if name in asked[pair[1]]]
        for one, other in (pair, pair[::-1]):
            mine, theirs = ([asked[model][name] for name in shared] for model in (one, other))
            where = f"{label}, questions that {other} answered too"
            for metric in METRICS:
                details[f"{one}.{metric}.beside.{other}"] = _share(metric, mine, where)
                details[f"{one}.{metric}.over.{other}"] = _only(metric, mine, theirs, where)
    return details


def pairs(models: Iterable[str]) -> list[tuple[str, str]]:
    """(model, what it set out from) wherever both are among ``models``."""
    names = set(models)
    return [
        (model, origin)
        for model, origins in ORIGINS.items()
        for origin in origins
        if {model, origin} <= names
    ]


def _only(metric: str, mine: list[Row], theirs: list[Row], where: str) -> Figure:
    for rows in (mine, theirs):
        if (share := _share(metric, rows, where))["value"] is None:
            return share
    right = METRICS[metric]
    hits = sum(right(a) and not right(b) for a, b in zip(mine, theirs, strict=True))
    return figure(hits, len(mine), where)


def _combinations(
    key: str, metric: str, rows: list[dict[str, Any]], label: str
) -> dict[str, Figure]:
    held_out = [row for row in rows if row["held_out"]]
    trained = [row for row in rows if not row["held_out"]]
    return {
        key: _share(metric, rows, label),
        f"{key}.held_out": _share(metric, held_out, f"{label}, held-out combinations"),
        f"{key}.trained": _share(metric, trained, f"{label}, trained combinations"),
    }


def _share(metric: str, rows: Sequence[Row], split: str) -> Figure:
    silent = sum(row.get("heard") is None for row in rows)
    if silent and metric != "text_correct":
        return unmeasured(f"{silent} of {len(rows)} answers were not judged", split)
    return figure(sum(METRICS[metric](row) for row in rows), len(rows), split)


# ---- voice control


def control(
    rows: list[dict[str, Any]], *, folder: str | Path, plain: Mapping[str, Prosody] | None = None
) -> dict[str, Figure]:
    """Measured duration and pitch of each styled answer over its plain counterpart, as mean ratios.

    Only the main model's answers whose text is right count. The plain counterpart is the mean over
    the model's own plain answers of the same text.

    Args:
        rows: answer rows; ``answer`` is a WAV below ``folder``.
        folder: where the rows' sounds lie.
        plain: text -> measures of the original plain clip, for texts the model never said plainly.
    """
    main = main_model(rows)
    right = [row for row in rows if row["model"] == main and text_right(row) and row["answer"]]
    measured = [(row, *_measures(Path(folder) / row["answer"])) for row in right]
    own: dict[str, list[Prosody]] = {}
    for row, said, _ in measured:
        if row["style"] == "plain":
            own.setdefault(row["expected"], []).append(said)
    no_pitch = next((reason for *_, reason in measured if reason), "")
    out = {}
    for style in CONTROL_FLOORS:
        pairs = []
        for row, said, _ in measured:
            reference = own.get(row["expected"]) or _clip(plain, row["expected"])
            if row["style"] == style and reference:
                pairs.append((said, reference))
        out[style] = _ratios(style, pairs, no_pitch)
    return out


def _measures(path: Path) -> tuple[Prosody, str]:
    """Measures of one file, and why the pitch is missing if the tool for it is."""
    samples = read_audio(path).samples
    duration_s = spoken_duration_s(samples, QUESTION_RATE_HZ)
    try:
        return Prosody(duration_s, median_f0_hz(samples, QUESTION_RATE_HZ)), ""
    except UsageError as error:
        return Prosody(duration_s, None), str(error)


def _clip(plain: Mapping[str, Prosody] | None, text: str) -> list[Prosody]:
    return [plain[text]] if plain and text in plain else []


def _ratios(style: str, pairs: list[tuple[Prosody, list[Prosody]]], no_pitch: str) -> Figure:
    durations = _over([(said.duration_s, [p.duration_s for p in plain]) for said, plain in pairs])
    pitches = _over([(said.f0_hz, [p.f0_hz for p in plain]) for said, plain in pairs])
    out: Figure = {
        "duration_ratio": _mean(durations),
        "f0_ratio": _mean(pitches),
        "n": len(pairs),
    }
    if not pairs:
        out["reason"] = f"no {style} answer with the right text and a plain counterpart"
    elif not durations or not pitches:
        out["reason"] = no_pitch or "no sound or no voiced frame in these answers"
    return out


def _over(pairs: list[tuple[float | None, list[float | None]]]) -> list[float]:
    ratios = []
    for said, references in pairs:
        reference = _mean([value for value in references if value is not None])
        if said is not None and reference:
            ratios.append(said / reference)
    return ratios


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
