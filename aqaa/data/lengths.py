"""How many ids each document of a corpus has, counted once and kept beside its token store.

Packing needs the lengths of all documents before the first step. Counting them reads every row
and its words, which on a large corpus takes hours; the result is 4 bytes a document.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from aqaa.backbone.loading import Ids
from aqaa.data.tasks import TASKS, Materials
from aqaa.data.token_store import TokenStore
from aqaa.errors import UsageError
from aqaa.progress import track
from aqaa.storage import atomic_path

_PATIENCE_ROWS = 20_000  # fewer are counted in no time: no bar, no file


def document_lengths(
    materials: Materials, tasks: Sequence[str], *, ids: Ids, store: TokenStore, split: str
) -> dict[str, np.ndarray]:
    """Ids of every row as a document of every task, int32 (rows,), without its last target.

    They are kept in ``<store>.lengths/``, under the hash of all they depend on, where that folder
    can be written.
    """
    key = {
        "corpus": store.meta["corpus_hash"],
        "codes": [store.tokenizer_hash, store.meta["question_books"]],
        "text": ids.text.hash,
        "layout": asdict(ids.layout),
        "tasks": sorted(tasks),
        "split": split,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = store.folder.with_name(f"{store.folder.name}.lengths") / f"{name}.npy"
    shape = (len(tasks), len(materials))
    kept = _read(path, shape)
    if kept is None:
        kept = _count(materials, sorted(tasks), lambda d: ids.layout.length(d, ids.text) - 1)
        if len(materials) >= _PATIENCE_ROWS:
            _keep(path, kept)
    return dict(zip(sorted(tasks), kept, strict=True))


def _count(materials: Materials, tasks: Sequence[str], length: Callable[[Any], int]) -> np.ndarray:
    """One pass over the rows, each read once for all tasks: int32 (tasks, rows)."""
    found = np.zeros((len(tasks), len(materials)), np.int32)
    rows: Any = enumerate(materials)
    if len(materials) >= _PATIENCE_ROWS:
        rows = track(rows, "measure documents", len(materials), unit="rows")
    for place, material in rows:
        found[:, place] = [length(TASKS[task](material)) for task in tasks]
    return found


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """What was kept, mapped into memory; None where nothing is, or nothing whole."""
    try:
        kept = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return kept if kept.shape == shape and kept.dtype == np.int32 else None


def _keep(path: Path, lengths: np.ndarray) -> None:
    """Keep them; a store on a medium that cannot be written is measured at every start."""
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, lengths)
    except (OSError, UsageError):
        return
