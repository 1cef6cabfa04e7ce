"""Figures over seeds and questions, verdicts on the paper's claims, and the page of both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqaa.evaluation.ablations import (
    CLAIMS,
    FILE,
    PAPER,
    RESULTS,
    UNDECIDED,
    difference,
    figure,
    summary,
    write,
)
from aqaa.storage import read_json


def rows(rights: list[bool]) -> list[dict[str, Any]]:
    """Judged rows; one that is right was written and heard as expected."""
    return [{"id": f"q{i}", "expected": "yes", "text": "yes" if right else "no",
             "heard": "yes" if right else ""} for i, right in enumerate(rights)]  # fmt: skip


def drawn(share: float, seeds: int = 3, questions: int = 60, start: int = 0) -> np.ndarray:
    return np.random.default_rng(start).random((seeds, questions)) < share


def test_a_figure_is_the_mean_with_an_interval_that_holds_it() -> None:
    right = drawn(0.7)
    found = figure(right)
    assert found["value"] == right.mean() and found["n"] == 180
    assert found["by_seed"] == [round(float(share), 4) for share in right.mean(1)]
    low, high = found["ci95"]
    assert low < found["value"] < high and high - low < 0.3
    assert figure(np.ones((3, 60), bool))["ci95"] == [1.0, 1.0]


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    inside = 0
    for trial in range(30):
        low, high = figure(drawn(0.6, seeds=8, start=trial))["ci95"]
        inside += low <= 0.6 <= high
    assert 24 <= inside <= 30


def test_seeds_that_differ_widen_the_interval() -> None:
    same = np.array([[i % 2 == 0 for i in range(60)]] * 4)
    apart = np.array([[True] * 60, [False] * 60] * 2)
    widths = [np.diff(figure(right)["ci95"])[0] for right in (same, apart)]
    assert same.mean() == apart.mean() and widths[1] > 2 * widths[0]


@pytest.mark.parametrize(
    ("shares", "verdict"), [((0.9, 0.2), "agrees"), ((0.2, 0.9), "contradicts")]
)
def test_a_clear_difference_has_its_verdict(shares: tuple[float, float], verdict: str) -> None:
    ahead, behind = (drawn(share, start=i) for i, share in enumerate(shares))
    found = difference(ahead, behind)
    assert found["verdict"] == verdict
    assert found["value"] == pytest.approx(ahead.mean() - behind.mean())
    assert difference(ahead, ahead)["verdict"] == "undecided"


def test_claims_are_put_to_a_test_where_both_models_are_there(tmp_path: Path) -> None:
    good, bad = ([rows([True] * 30)] * 2, [rows([False] * 30)] * 2)
    answers = {"ratio_10_15": good, "ratio_3_5": bad, "merge": bad}
    found = summary(answers)
    assert [(c["ahead"], c["behind"], c["verdict"]) for c in found["claims"]] == [
        ("ratio_10_15", "ratio_3_5", "agrees"), ("merge", "ratio_10_15", "contradicts")
    ]  # fmt: skip
    assert found["models"]["ratio_10_15"]["answers_correct"]["value"] == 1.0
    page = write(tmp_path, found, {"seeds": 2}).read_text()
    assert (tmp_path / FILE).is_file() and read_json(tmp_path / RESULTS)["models"].keys() == {
        *answers
    }
    assert page.count("<td>4.03, 0.65, 0.67</td>") == page.count("<td>1.03, 0.00, 0.00</td>") == 1
    assert page.count("<td>not tabulated</td>") == 1  # the merge
    assert '<span class="yes">agrees</span>' in page and "+100.0" in page
    assert all(sentence.split(":")[0] in page for sentence in UNDECIDED)


def test_models_that_were_asked_other_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="the seeds of merge were asked other questions"):
        summary({"merge": [rows([True, True]), rows([True])]})


def test_claims_are_about_models_there_are() -> None:
    from aqaa.runtime.ablations import AFTER, LAYOUTS

    models = {*LAYOUTS, *AFTER}
    assert {name for claim in CLAIMS for name in (claim.ahead, claim.behind)} <= models
    assert PAPER.keys() <= models
