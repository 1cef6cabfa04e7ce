"""A cut row of questions goes on as if it had not been cut."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from aqaa.evaluation.asking import Asking

ROWS: list[dict[str, Any]] = [{"id": str(i)} for i in range(7)]


def asked(folder: Path, seed: int = 0, cut: int = 99) -> tuple[list[dict[str, Any]], list[str]]:
    """All outcomes, which chance decides, and the questions really asked."""
    rng, generator, put = random.Random(seed), torch.Generator().manual_seed(seed), []
    plan = {"seed": seed}
    asking = Asking(folder=folder, plan=plan, rng=rng, generator=generator)

    def outcome(row: dict[str, Any]) -> dict[str, Any]:
        put.append(row["id"])
        drawn = float(torch.rand((), generator=generator))
        found = {"id": row["id"], "a": rng.gauss(0, 1), "b": drawn}
        if len(put) == cut:
            raise KeyboardInterrupt
        return found

    found = list(asking.ask(ROWS, outcome))
    asking.finish()
    return found, put


@pytest.mark.parametrize("cut", [1, 2, 5, 7])
def test_a_cut_row_goes_on_with_the_question_it_was_at(cut: int, tmp_path: Path) -> None:
    whole, put = asked(tmp_path / "whole")
    assert put == [row["id"] for row in ROWS] and not (tmp_path / "whole").exists()
    with pytest.raises(KeyboardInterrupt):
        asked(tmp_path / "cut", cut=cut)
    if (done := tmp_path / "cut/done.jsonl").exists():  # killed between a line and its chance
        done.write_text(done.read_text() + '{"id": "of another life"}\n{"id":')
    again, put = asked(tmp_path / "cut")
    assert again == whole and put == [row["id"] for row in ROWS[cut - 1 :]]


def test_what_another_plan_left_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        asked(tmp_path / "work", seed=1, cut=4)
    assert asked(tmp_path / "work")[0] == asked(tmp_path / "other")[0]
