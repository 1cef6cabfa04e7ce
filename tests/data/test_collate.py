"""Rows of documents: what is read, what is learnt, where a document begins."""

import numpy as np
import pytest
import torch

from aqaa.data.collate import Document, packed, padded

PAD = 9


def document(source: int, *ids: int) -> Document:
    """Every id has ten times itself as its slot."""
    return Document(source, np.array(ids, np.int32), 10 * np.array(ids, np.int8))


A, B, C = document(2, 1, 2, 3), document(5, 4, 5), document(0, 6, 7, 8, 1)


def test_packed_rows() -> None:
    batch = packed([[A, B], [C]], 6, pad=PAD)
    assert batch.input_ids.tolist() == [[1, 2, 4, 9, 9, 9], [6, 7, 8, 9, 9, 9]]
    assert batch.targets.tolist() == [[2, 3, 5, 9, 9, 9], [7, 8, 1, 9, 9, 9]]
    assert batch.slots.tolist() == [[20, 30, 50, 0, 0, 0], [70, 80, 10, 0, 0, 0]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 0, 0, 1, 2], [0, 1, 2, 0, 1, 2]]
    assert batch.sources.tolist() == [[2, 2, 5, -1, -1, -1], [0, 0, 0, -1, -1, -1]]
    assert all(t.dtype == torch.int64 for t in batch[1:-1]) and batch.share == 1


def test_padded_rows() -> None:
    batch = padded("asr", [A, C], pad=PAD)
    assert batch.task == "asr" and batch.position_ids is None
    assert batch.input_ids.tolist() == [[1, 2, 9], [6, 7, 8]]
    assert batch.targets.tolist() == [[2, 3, 9], [7, 8, 1]]
    assert batch.slots.tolist() == [[20, 30, 0], [70, 80, 10]]
    assert batch.sources[0, :2].tolist() == [2, 2]


def test_what_does_not_fit_is_not_cut() -> None:
    with pytest.raises(ValueError, match="documents of row 1 have more than its 5 ids"):
        packed([[A], [A, C, B]], 5, pad=PAD)
