"""What recipes say of loss, steps and size is what the smallest chain gives; so say the pages.

``recipes/*.json`` hold the numbers; tools/expect.py writes them and the pages' tables.
"""

import copy
from pathlib import Path
from typing import Any

import pytest

from aqaa.lineage import read_lineage
from aqaa.runtime.compose import compose
from aqaa.storage import read_json
from tests.conftest import ROOT, Walkthrough
from tests.runs import tool

expect = tool("expect")
RECIPES = list(expect.STAGES)
FIGURES = {"steps", "loss", "validation", "tolerance", "seconds", "memory_bytes", "parameters"}


def record(recipe: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(ROOT / "recipes" / f"{recipe}.json")
    return found


def disagreements(folder: Path, expected: dict[str, Any]) -> list[str]:
    """What the runs of the smallest chain do otherwise; time and memory are the machine's."""
    found = []
    for stage, figures in expected[expect.SMOKE]["stages"].items():
        done = read_lineage(folder / stage)
        assert done is not None
        for name in ("steps", "parameters"):
            if getattr(done, name) != figures[name]:
                found.append(f"{stage}: {name} {getattr(done, name)}, not {figures[name]}")
        for name, value in expect.losses(folder / stage).items():
            wanted = figures[name]
            if wanted is None or value is None:
                if wanted != value:
                    found.append(f"{stage}: {name} {value}, not {wanted}")
            elif abs(value - wanted) > figures["tolerance"] * abs(wanted):
                found.append(f"{stage}: {name} {value:.4g}, not {wanted:.4g}")
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_smallest_chain_comes_to_its_losses(recipe: str, smoke: Walkthrough) -> None:
    assert disagreements(smoke.folder, record(recipe)) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_loss_that_is_off_is_found(recipe: str, smoke: Walkthrough) -> None:
    good = record(recipe)
    for stage in expect.STAGES[recipe]:
        for name, factor in (("loss", 1.06), ("loss", 0.94), ("steps", 2), ("parameters", 2)):
            wrong = copy.deepcopy(good)
            wrong[expect.SMOKE]["stages"][stage][name] *= factor
            (said,) = disagreements(smoke.folder, wrong)
            assert said.startswith(f"{stage}: {name} ")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_page_has_the_table_of_its_numbers(recipe: str) -> None:
    page = (ROOT / "recipes" / f"{recipe}.md").read_text("utf-8")
    assert expect.with_block(page, recipe, record(recipe)) == page


@pytest.mark.parametrize("recipe", RECIPES)
def test_numbers_are_whole_and_of_the_presets_as_they_are(recipe: str) -> None:
    found = record(recipe)
    assert found.keys() == {expect.FULL, expect.SMOKE}
    presets = {expect.FULL: [], expect.SMOKE: [f"preset={expect.SMOKE}"]}
    for preset, part in found.items():
        assert part.keys() == {"machine", "date", "stages"}
        assert tuple(part["stages"]) == expect.STAGES[recipe]
        steps = compose("walkthrough", presets[preset]).steps
        for stage, figures in part["stages"].items():
            assert figures.keys() == FIGURES
            assert figures["steps"] == steps[stage]
            assert 0 < figures["tolerance"] <= 0.05
            assert 1e8 < figures["memory_bytes"] < 1e10


def test_every_recipe_that_trains_has_numbers() -> None:
    trained = {path.stem for path in (ROOT / "aqaa" / "stages").glob("*.py")}
    pages = {path.stem for path in (ROOT / "recipes").glob("*.py")}
    assert set(RECIPES) == (trained & pages) - {"merge"}  # which takes no steps
    assert {path.stem for path in (ROOT / "recipes").glob("*.json")} == set(RECIPES)
