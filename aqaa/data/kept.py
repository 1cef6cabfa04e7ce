"""Arrays that a corpus and a configuration decide: made once, then mapped from beside the store.

A run that starts or resumes must not count a large corpus again. What is kept is named by a hash of
all it depends on, so that it is never taken for another, and checked before it is used.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aqaa.data.token_store import TokenStore
from aqaa.errors import UsageError
from aqaa.ranks import rank
from aqaa.storage import atomic_folder, verify_manifest

PATIENCE_ROWS = 20_000  # of a corpus; what a smaller one decides is made in no time, and not kept
_VERSION = 2  # raised whenever the same key would give other arrays

Arrays = dict[str, np.ndarray]


def kept(
    store: TokenStore, key: Mapping[str, Any], make: Callable[[], Arrays], *, rows: int
) -> Arrays:
    """Arrays by name, read-only where they come from the disk.

    They lie in ``<store>.kept/<hash>/``, checked against their SHA-256; damaged ones are made anew.
    The first rank writes them; where nothing can be written they are made at every start.

    Args:
        store: the codes, with the hash of their corpus and of their tokenizers.
        key: what they depend on besides, as JSON.
        make: makes them.
        rows: of the corpus; below :data:`PATIENCE_ROWS` nothing is kept.
    """
    if rows < PATIENCE_ROWS:
        return make()
    codes = [store.meta["corpus_hash"], store.tokenizer_hash, store.meta["question_books"]]
    named = json.dumps([_VERSION, codes, key], sort_keys=True)
    name = hashlib.sha256(named.encode()).hexdigest()[:16]
    folder = store.folder.with_name(f"{store.folder.name}.kept") / name
    if (found := _read(folder)) is not None:
        return found
    made = make()
    if rank() == 0:
        _write(folder, made)
    return made


def _read(folder: Path) -> Arrays | None:
    """What was kept, mapped into memory; None where nothing is, or nothing whole."""
    try:
        verify_manifest(folder)
        files = sorted(folder.glob("*.npy"))
        return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in files}
    except (OSError, ValueError, UsageError):
        return None


def _write(folder: Path, arrays: Arrays) -> None:
    try:
        with atomic_folder(folder) as temporary:
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array)
    except (OSError, UsageError):
        return
