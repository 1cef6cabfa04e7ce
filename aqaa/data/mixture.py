"""The sources of a mixture: which rows are read in which format, and how much of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aqaa.data.selection import check_where
from aqaa.data.tasks import TASKS
from aqaa.errors import UsageError

ShareOf = Literal["steps", "ids"]
_IMAGE = "image"
_KEYS = {"share", "batch", "format", "where"}


@dataclass(frozen=True)
class Source:
    """One kind of sequence in a mixture.

    Args:
        share: of the steps or of the ids, relative to the other sources.
        format: what a row becomes, a name of :data:`aqaa.data.tasks.TASKS`.
        batch: sequences a step; of no meaning in packed rows.
        where: which rows, see :mod:`aqaa.data.selection` (nothing: all).
    """

    share: float
    format: str
    batch: int = 8
    where: dict[str, Any] = field(default_factory=dict)


def read_sources(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Source]:
    """Sources by name; one without a ``format`` has that of its name, shares of 0 are left out.

    Raises:
        UsageError: images, an unknown format or key, a filter that is none.
    """
    for name, task in tasks.items():
        if unknown := sorted(set(task) - _KEYS):
            raise UsageError(
                f"data.tasks.{name} has {', '.join(unknown)}: it may have share, batch, format and "
                f"where"
            )
        if "share" not in task:
            raise UsageError(f"data.tasks.{name} has no share: say how much of it is wanted")
        if _IMAGE in (name, task.get("format")) and task["share"]:
            raise UsageError(
                f"data.tasks.{name}.share={task['share']}: no image can be trained on yet, so it "
                f"must be 0"
            )
    formats = {name: str(task.get("format") or name) for name, task in tasks.items()}
    unknown = sorted({f for f in formats.values() if f not in TASKS and f != _IMAGE})
    if unknown:
        raise UsageError(f"unknown tasks {unknown}; known: {', '.join(TASKS)}")
    found = {}
    for name, task in tasks.items():
        where = dict(task.get("where") or {})
        check_where(where, f"data.tasks.{name}")
        batch = int(task.get("batch", 8))
        found[name] = Source(float(task["share"]), formats[name], batch, where)
    if not any(s.share > 0 for s in found.values()) or min(s.share for s in found.values()) < 0:
        shares = {name: source.share for name, source in found.items()}
        raise UsageError(f"shares {shares} must not be negative and not all zero")
    return {name: source for name, source in found.items() if source.share > 0}
