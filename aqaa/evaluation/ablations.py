"""Ablations beside the paper's: shares over seeds and questions, their intervals, what agrees.

A model's answers are right or wrong by (seed, question). Intervals come from drawing seeds anew,
and then questions, which all models share. Letters: K seeds, Q questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqaa.evaluation.measure import METRICS
from aqaa.evaluation.report import TEMPLATE
from aqaa.storage import write_json, write_text

FILE, RESULTS = "report.html", "results.json"
_DRAWS = 2000
# Judged by GPT-4o (paper section 5.2): Chat 1 to 5, Relevance and Factuality 0 to 1.
PAPER: dict[str, tuple[float, float, float]] = {
    "audio_only": (1.72, 0.05, 0.03),
    "ratio_6_50": (1.20, 0.04, 0.05),
    "ratio_3_5": (1.03, 0.00, 0.00),
    "text_cot": (4.01, 0.59, 0.58),
    "ratio_10_15": (4.03, 0.65, 0.67),
}
Right = NDArray[np.bool_]


@dataclass(frozen=True)
class Claim:
    """That ``ahead`` is better than ``behind`` by ``metric``; ``source`` says it."""

    ahead: str
    behind: str
    metric: str
    source: str


# ``ratio_10_15`` is SFT 1 of the paper's layout.
CLAIMS = (
    Claim("ratio_10_15", "ratio_3_5", "answers_correct", "Table 1"),
    Claim("ratio_10_15", "ratio_6_50", "answers_correct", "Table 1"),
    Claim("ratio_10_15", "audio_only", "answers_correct", "Table 1"),
    Claim("ratio_10_15", "text_cot", "answers_correct", "Table 1, by little"),
    Claim("text_cot", "audio_only", "answers_correct", "Table 1"),
    Claim("ratio_10_15", "one_book", "text_correct", "Step-Audio 6.2.1: two books hear better"),
    Claim("dpo", "dpo_all_ids", "text_audio_agreement", "section 3.3, told but not tabulated"),
    Claim("merge", "ratio_10_15", "answers_correct", "section 3.4, why one merges; not tabulated"),
    Claim("merge", "sft_2", "answers_correct", "section 3.4, why one merges; not tabulated"),
    Claim("merge", "dpo", "answers_correct", "section 3.4, why one merges; not tabulated"),
    Claim("sft_2", "ratio_10_15", "text_audio_agreement", "section 3.2: SFT 2 steadies the stream"),
)
UNDECIDED = (
    "Relevance, chat and factuality: a recogniser that chooses among all answers of the corpus is "
    "no judge of talk. Ours are shares of right answers, the paper's are marks by GPT-4o.",
    "Several voices in one answer (paper Table 2): the synthetic answers have one voice each.",
    "How far text leads speech in long answers: most answers of the corpus end within one block of "
    "ten words, so 10 : 15 and text first differ in few of them.",
    "Speech of one book alone: the vocoder speaks both, so only its text is measured.",
)


def figure(right: Right, seed: int = 0) -> dict[str, Any]:
    """Mean of (K, Q) with its 95 % interval, and the mean of each seed."""
    low, high = np.quantile(_drawn(right.astype(float), seed), (0.025, 0.975))
    by_seed = [round(float(share), 4) for share in right.mean(1)]
    ends = [round(float(low), 4), round(float(high), 4)]
    return {"value": float(right.mean()), "ci95": ends, "by_seed": by_seed, "n": right.size}


def difference(ahead: Right, behind: Right, seed: int = 0) -> dict[str, Any]:
    """How far one model is ahead of another on the same questions, (K, Q) each."""
    gap = ahead.astype(float) - behind.astype(float)
    low, high = np.quantile(_drawn(gap, seed), (0.025, 0.975))
    verdict = "agrees" if low > 0 else "contradicts" if high < 0 else "undecided"
    ends = [round(float(low), 4), round(float(high), 4)]
    return {"value": float(gap.mean()), "ci95": ends, "verdict": verdict}


def _drawn(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of resampled seeds and questions, (draws,)."""
    rng = np.random.default_rng(seed)
    seeds, questions = values.shape
    found = np.empty(_DRAWS)
    for draw in range(_DRAWS):
        rows = rng.integers(seeds, size=seeds)
        columns = rng.integers(questions, size=questions)
        found[draw] = values[np.ix_(rows, columns)].mean()
    return found


def summary(answers: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> dict[str, Any]:
    """Figures by model and metric, and the verdict on every claim that can be put to a test.

    Args:
        answers: by model, for every seed its judged rows, of the same questions everywhere.
    """
    right = {
        model: {name: _matrix(model, seeds, test) for name, test in METRICS.items()}
        for model, seeds in answers.items()
    }
    models = {m: {name: figure(r) for name, r in by.items()} for m, by in right.items()}
    claims = []
    for claim in CLAIMS:
        if claim.ahead in right and claim.behind in right:
            pair = (right[claim.ahead][claim.metric], right[claim.behind][claim.metric])
            claims.append({**vars(claim), **difference(*pair)})
    return {"models": models, "claims": claims}


def _matrix(model: str, seeds: Sequence[Sequence[Mapping[str, Any]]], test: Any) -> Right:
    asked = [[row["id"] for row in rows] for rows in seeds]
    if any(ids != asked[0] for ids in asked):
        raise ValueError(f"the seeds of {model} were asked other questions")
    return np.array([[test(row) for row in rows] for rows in seeds])


# ---- page


def write(folder: Path, results: Mapping[str, Any], settings: Mapping[str, Any]) -> Path:
    """Write ``results.json`` and ``report.html``."""
    write_json(folder / RESULTS, {**results, "settings": dict(settings)})
    write_text(folder / FILE, page(results, settings))
    return folder / FILE


def page(results: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Our table beside the paper's, the claims, and what cannot be decided."""
    style = TEMPLATE.read_text("utf-8").partition("<style>")[2].partition("</style>")[0]
    models = "".join(_model(name, by) for name, by in results["models"].items())
    claims = "".join(_claim(claim) for claim in results["claims"])
    said = ", ".join(f"{name} {value}" for name, value in settings.items())
    left = "".join(f"<li>{escape(sentence)}</li>" for sentence in UNDECIDED)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
        f"style-src 'unsafe-inline'\"><title>The paper's ablations, tiny</title><style>{style}"
        '</style></head><body><header class="top wrap"><h1>The paper\'s ablations, tiny</h1>'
        f'<p class="lead">{escape(said)}. Shares with 95 % intervals over seeds and questions.</p>'
        '</header><main class="wrap"><section><h2>Models</h2><div class="sheet scroll"><table>'
        "<thead><tr><th scope=col>Model</th>"
        + "".join(f"<th scope=col>{name.replace('_', ' ')}</th>" for name in METRICS)
        + "<th scope=col>Paper: Chat, Rel., Fact.</th></tr></thead>"
        f"<tbody>{models}</tbody></table></div></section><section><h2>What the paper says</h2>"
        '<div class="sheet scroll"><table><thead><tr><th scope=col>Better</th><th scope=col>than'
        "</th><th scope=col>by</th><th scope=col>Here</th><th scope=col>Verdict</th><th scope=col>"
        f"Where</th></tr></thead><tbody>{claims}</tbody></table></div></section><section><h2>What "
        f'this cannot decide</h2><ul class="sheet">{left}</ul></section></main></body></html>\n'
    )


def _model(name: str, by: Mapping[str, Mapping[str, Any]]) -> str:
    cells = "".join(f"<td>{_share(by[metric])}</td>" for metric in METRICS)
    paper = ", ".join(f"{mark:.2f}" for mark in PAPER[name]) if name in PAPER else "not tabulated"
    return f"<tr><th scope=row>{escape(name)}</th>{cells}<td>{paper}</td></tr>"


def _share(found: Mapping[str, Any]) -> str:
    low, high = found["ci95"]
    seeds = ", ".join(f"{100 * share:.0f}" for share in found["by_seed"])
    return (
        f"<b>{100 * found['value']:.1f} %</b><small>{100 * low:.1f} to {100 * high:.1f}; "
        f"by seed {seeds}</small>"
    )


def _claim(claim: Mapping[str, Any]) -> str:
    low, high = claim["ci95"]
    kind = {"agrees": "yes", "contradicts": "no"}.get(claim["verdict"], "none")
    names = "".join(f"<td>{escape(claim[k]).replace('_', ' ')}</td>" for k in
                    ("ahead", "behind", "metric"))  # fmt: skip
    return (
        f"<tr>{names}<td>{100 * claim['value']:+.1f} <small>{100 * low:+.1f} to {100 * high:+.1f}"
        f'</small></td><td><span class="{kind}">{claim["verdict"]}</span></td>'
        f"<td>{escape(claim['source'])}</td></tr>"
    )
