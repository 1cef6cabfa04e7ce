"""The tool that writes down what to expect: figures of runs, their table, the page around it."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.runs import tool


@pytest.fixture(scope="module")
def expect() -> ModuleType:
    return tool("expect")


def write(run: Path, *lines: str) -> Path:
    run.mkdir()
    (run / "metrics.csv").write_text("\n".join(["step,train/loss,validation/loss", *lines]) + "\n")
    return run


def test_a_loss_is_the_mean_of_the_last_tenth(expect: ModuleType, tmp_path: Path) -> None:
    run = write(tmp_path / "a", *(f"{i},{i}.5," for i in range(20)), "20,,3.0", "21,,2.0")
    assert expect.losses(run) == {"loss": 19.0, "validation": 2.0}
    short = write(tmp_path / "b", "0,4.0,", "1,2.0,")
    assert expect.losses(short) == {"loss": 2.0, "validation": None}


def figures(**more: Any) -> dict[str, Any]:
    found = {"steps": 3800, "loss": 0.01234, "validation": None, "seconds": 294}
    return {**found, "tolerance": 0.02, "memory_bytes": 1.204e9, "parameters": 1, **more}


def test_the_table_by_hand(expect: ModuleType) -> None:
    part = {"machine": "X, 2 cores", "date": "2026-01-02", "stages": {"sft_1": figures()}}
    smoke = {**part, "stages": {"sft_1": figures(steps=10, validation=4.0, seconds=7)}}
    assert expect.block({"walkthrough": part, "walkthrough/smoke": smoke}).splitlines()[2:4] == [
        "| sft_1 | 3,800 | 0.0123 | not checked | 4:54 | 1.20 GB |",
        "| sft_1 of walkthrough/smoke | 10 | 0.0123 | 4 | 0:07 | 1.20 GB |",
    ]


def test_a_page_keeps_what_is_around_its_table(expect: ModuleType) -> None:
    part = {"machine": "X", "date": "2026-01-02", "stages": {"dpo": figures()}}
    begin = expect.BEGIN.format("dpo.json")
    page = f"# dpo\n\n{begin}\nold\n{expect.END}\n\nafter\n"
    found = expect.with_block(page, "dpo", {"walkthrough": part})
    assert found.startswith(f"# dpo\n\n{begin}\n| run |") and found.endswith(
        f"no promise.\n{expect.END}\n\nafter\n"
    )
    assert expect.with_block(found, "dpo", {"walkthrough": part}) == found
    with pytest.raises(SystemExit, match="has no lines"):
        expect.with_block("# dpo\n", "dpo", {"walkthrough": part})


def test_a_run_that_is_not_finished_is_no_figure(expect: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is not a finished run"):
        expect.expectation(tmp_path, "sft_1")
