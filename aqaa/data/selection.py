"""Which rows of a manifest a source takes: a filter over the fields of a row.

``where`` maps a field, with dots between its levels, to what it must be: a value, a list of values,
or bounds ``{min, max}``, either of which may be left out. A row that lacks the field is not taken.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from aqaa.errors import UsageError

_BOUNDS = {"min", "max"}


def check_where(where: Mapping[str, Any], name: str) -> None:
    """Refuse a filter that could take no row, or that is not understood."""
    for field, wanted in where.items():
        bounds = isinstance(wanted, Mapping)
        if bounds and (not wanted or set(wanted) - _BOUNDS):
            raise UsageError(
                f"{name}.where.{field} has {', '.join(map(str, wanted)) or 'nothing'}: bounds are "
                f"min and max"
            )
        if isinstance(wanted, list) and not wanted:
            raise UsageError(f"{name}.where.{field}=[] takes no row: list a value")


def takes(where: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a row passes every condition."""
    return all(_fits(_value(row, field), wanted) for field, wanted in where.items())


def selected(where: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Places of the rows that pass, int64, in their order."""
    return np.array([i for i, row in enumerate(rows) if takes(where, row)], np.int64)


def _value(row: Any, field: str) -> Any:
    for level in field.split("."):
        row = row.get(level) if isinstance(row, Mapping) else None
    return row


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        least, most = (float(wanted.get(k, d)) for k, d in (("min", "-inf"), ("max", "inf")))
        return number and least <= value <= most
    allowed = wanted if isinstance(wanted, list) else [wanted]
    # 1 is not true here, as it is in Python.
    return any(isinstance(value, bool) == isinstance(one, bool) and value == one for one in allowed)
