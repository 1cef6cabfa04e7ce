"""How many ids each document of a corpus has.

Packing needs the lengths of all documents before the first step. Counting them reads every row
and its words, which on a large corpus takes hours; the result is 4 bytes a document.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from aqaa.backbone.loading import Ids
from aqaa.data.kept import PATIENCE_ROWS, kept
from aqaa.data.tasks import TASKS, Materials
from aqaa.data.token_store import TokenStore
from aqaa.errors import UsageError
from aqaa.progress import track
from aqaa.signals import Dialogue, Turn


def encoding(ids: Ids) -> dict[str, Any]:
    """What decides the ids of a document besides its codes and words, to name what is kept by."""
    return {"text": ids.text.hash, "layout": asdict(ids.layout)}


def document_lengths(
    materials: Materials, tasks: Sequence[str], *, ids: Ids, store: TokenStore, split: str
) -> dict[str, np.ndarray]:
    """Ids of every row as a document of every task, int32 (rows,), without its last target."""

    def count(document: Dialogue) -> int:
        return ids.layout.length(document, ids.text) - 1

    key = {"of": "documents", **encoding(ids), "tasks": sorted(tasks), "split": split}
    return kept(store, key, lambda: _count(materials, tasks, count), rows=len(materials))


def about_lengths(
    materials: Materials, tasks: Sequence[str], *, ids: Ids, store: TokenStore, split: str
) -> dict[str, np.ndarray]:
    """The same without a text encoder, near enough to sort by: codes and words, int32 (rows,)."""

    def count(document: Dialogue) -> int:
        return sum(map(_size, ids.layout.recalled(document)))

    history = ids.layout.history
    key = {"of": "about", "tasks": sorted(tasks), "split": split, "history": history}
    return kept(store, key, lambda: _count(materials, tasks, count), rows=len(materials))


def _size(turn: Turn) -> int:
    codes = sum(len(pair.linguistic) + len(pair.semantic) for pair in turn.speech)
    return codes + len(turn.text.split())


def _count(
    materials: Materials, tasks: Sequence[str], length: Callable[[Dialogue], int]
) -> dict[str, np.ndarray]:
    """One pass over the rows, each read once for all tasks.

    Raises:
        UsageError: a row cannot be read in a format, by its id.
    """
    found = {task: np.zeros(len(materials), np.int32) for task in tasks}
    rows: Any = enumerate(materials)
    if len(materials) >= PATIENCE_ROWS:
        rows = track(rows, "measure documents", len(materials), unit="rows")
    for place, material in rows:
        for task, sizes in found.items():
            try:
                sizes[place] = length(TASKS[task](material))
            except UsageError as error:
                raise UsageError(f"row {material.row['id']} as {task}: {error}") from None
    return found
