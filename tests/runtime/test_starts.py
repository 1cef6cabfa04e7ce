"""A run folder tells which ranks took which steps, also where it was taken up again and again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aqaa.errors import UsageError
from aqaa.runtime.starts import STARTS, NoteStarts, Start, read_starts


def begin(run: Path, step: int, ranks: int, accumulate: int, rank: int = 0) -> None:
    trainer: Any = SimpleNamespace(
        is_global_zero=rank == 0,
        global_step=step,
        world_size=ranks,
        accumulate_grad_batches=accumulate,
    )
    NoteStarts(run=run).on_train_start(trainer, None)  # type: ignore[arg-type]


def test_what_was_taken_again_counts_as_it_was_taken_last(tmp_path: Path) -> None:
    assert read_starts(tmp_path) == []
    begin(tmp_path, 0, 2, 4)
    begin(tmp_path, 0, 2, 4, rank=1)
    begin(tmp_path, 5, 4, 2)
    begin(tmp_path, 9, 1, 8)
    assert read_starts(tmp_path) == [Start(0, 2, 4), Start(5, 4, 2), Start(9, 1, 8)]
    begin(tmp_path, 5, 8, 1)  # the state of step 9 was damaged
    assert read_starts(tmp_path) == [Start(0, 2, 4), Start(5, 8, 1)]


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    for text in ("[{}]", "[1]", "3"):
        (tmp_path / STARTS).write_text(text)
        with pytest.raises(UsageError, match=f"{STARTS} is not a list of starts of this version"):
            read_starts(tmp_path)
