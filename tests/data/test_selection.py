"""Filters over rows: what passes, what is refused."""

from typing import Any

import pytest

from aqaa.data.selection import check_where, selected, takes
from aqaa.errors import UsageError

ROW = {"id": "a", "lang": "en", "meta": {"style": "high", "score": 4.5, "checked": True, "n": 1}}


@pytest.mark.parametrize(
    ("where", "passes"),
    [
        ({}, True),
        ({"lang": "en"}, True),
        ({"lang": "zh"}, False),
        ({"meta.style": ["plain", "high"]}, True),
        ({"meta.style": ["plain"]}, False),
        ({"meta.score": {"min": 4.5}}, True),
        ({"meta.score": {"min": 4.6}}, False),
        ({"meta.score": {"max": 4.5, "min": 1}}, True),
        ({"meta.score": {"max": 4.4}}, False),
        ({"meta.score": 4.5}, True),
        ({"meta.n": 1.0}, True),
        ({"meta.checked": True}, True),
        ({"meta.checked": 1}, False),
        ({"meta.n": True}, False),
        ({"meta.checked": {"min": 0}}, False),
        ({"meta.style": {"min": 0}}, False),
        ({"meta.missing": {"min": 0}}, False),
        ({"lang.deeper": "en"}, False),
        ({"lang": "en", "meta.style": "plain"}, False),
    ],
)
def test_every_condition_must_hold(where: dict[str, Any], passes: bool) -> None:
    assert takes(where, ROW) is passes


def test_places_are_those_of_the_rows() -> None:
    rows = [{"meta": {"score": n}} for n in (3, 5, 1, 4)]
    assert selected({"meta.score": {"min": 3}}, rows).tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ({"meta.score": {"least": 3}}, "x.where.meta.score has least: bounds are min and max"),
        ({"meta.score": {}}, "has nothing: bounds are min and max"),
        ({"lang": []}, r"x.where.lang=\[\] takes no row"),
    ],
)
def test_a_filter_that_is_none_is_refused(where: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        check_where(where, "x")
