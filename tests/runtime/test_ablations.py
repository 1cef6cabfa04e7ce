"""The ablations: which commands there are, that each composes, and a few of them for real."""

from pathlib import Path
from typing import Any

import pytest

from aqaa.data.manifest import read_manifest
from aqaa.data.tasks import TASKS, Material
from aqaa.errors import UsageError
from aqaa.evaluation.infer import ASKS
from aqaa.runtime.ablations import AFTER, LAYOUTS, Sizes, _Plan, ablations
from aqaa.runtime.compose import bind_targets, compose
from aqaa.runtime.verbs import find_verb
from aqaa.signals import CodePair, Turn
from aqaa.storage import read_json
from tests.conftest import Chain

STEPS = {"pretrain": 1, "sft_1": 1, "sft_2": 1, "dpo": 1}
SMALL = ["trainer.limit_val_batches=0", "run.threads=1", "run.save_every_s=1000"]


def plan(models: list[str], seeds: tuple[int, ...] = (0,)) -> _Plan:
    made = _Plan(Path("runs/a"), Path("runs/walkthrough"), Sizes(STEPS, 7, 9, ()))
    for seed in seeds:
        made.add_seed(seed, models)
    return made


def test_every_command_composes_and_makes_what_the_next_one_needs() -> None:
    steps = plan([*LAYOUTS, *AFTER]).steps
    made: set[str] = set()
    for step in steps:
        assert set(step.needs) <= made
        made.add(step.name)
        if not any(layout in step.name for layout in ("text_cot", "ratio_6_50", "ratio_3_5")):
            verb, words = find_verb(list(step.words))
            bind_targets(compose(verb.name, words))
        for word in step.words:  # parents are made by the steps that are named, or are the base's
            for path in word.partition("=")[2].strip("[]").split(","):
                if path.startswith("runs/a/") and word.split("=")[0] not in ("run.root", "out"):
                    folder = path.removeprefix("runs/a/").removesuffix("/model")
                    assert folder.replace("/", "_") in step.needs, word
    names = {step.name.removeprefix("seed_0_") for step in steps}
    assert {f"answers_{model}" for model in (*LAYOUTS, *AFTER)} <= names


def test_a_seed_adds_its_own_steps_and_changes_no_other() -> None:
    one, two = plan(["ratio_3_5"]).steps, plan(["ratio_3_5"], (0, 1)).steps
    assert two[: len(one)] == one and len(two) == 2 * len(one)
    assert all("seed=1" in " ".join(s.words) for s in two[len(one) :] if "answers" not in s.name)


def test_what_a_model_is_trained_on_from_comes_with_it() -> None:
    names = [step.name.removeprefix("seed_0_") for step in plan(["merge"]).steps]
    assert names == [
        *(f"ratio_10_15_{part}" for part in ("init", "pretrain", "sft_1", "pairs", "sft_2")),
        *("ratio_10_15_dpo", "ratio_10_15_merge", "answers_merge"),
    ]


def test_a_model_is_asked_as_its_task_asks() -> None:
    answer = Turn("assistant", "yes", [CodePair([1, 2], [3, 4, 5])], loss=True)
    question = Turn("human", speech=[CodePair([1, 2], [3, 4, 5])])
    material = Material({"meta": {"style": "plain"}}, question, answer)
    for task, mode in (("aqaa", "speech"), ("aqta", "text"), ("aqtaa", "both")):
        system = [turn.text for turn in TASKS[task](material) if turn.role == "system"]
        assert system == ([ASKS[mode]] if ASKS[mode] else [])  # type: ignore[index]


def run(chain: Chain, out: Path, **more: Any) -> Path:
    settings: dict[str, Any] = {"seeds": [0], "rows": 1, "steps": STEPS, "prompts": 3}
    settings |= {"extra": SMALL, "only": ["audio_only", "one_book"], "workers": 1}
    return ablations(out=str(out), base=str(chain.folder), **{**settings, **more})


def test_a_few_are_trained_judged_and_kept(
    chain: Chain, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pocketsphinx")
    report = run(chain, tmp_path / "a")
    results = read_json(tmp_path / "a" / "results.json")
    assert results["models"].keys() == {"audio_only", "one_book"}
    asked = [row["id"] for row in read_manifest(chain / "corpus" / "test.jsonl")[:1]]
    for model in results["models"]:
        rows = read_manifest(tmp_path / "a" / "seed_0" / f"answers_{model}" / "answers.jsonl")
        assert [row["id"] for row in rows] == asked
        kinds = {kind for row in rows for kind, _ in row["tokens"]}
        assert ("semantic" in kinds) <= (model == "audio_only")
        if model == "audio_only":
            assert all(row["text"] == "" for row in rows)
    assert "not tabulated" in report.read_text() and "1.72, 0.05, 0.03" in report.read_text()
    capfd.readouterr()
    assert run(chain, tmp_path / "a") == report
    said = capfd.readouterr().out
    assert "kept: " in said and "begun" not in said


def test_errors_of_use_are_one_sentence(chain: Chain, tmp_path: Path) -> None:
    for more, sentence in (
        ({"only": ["ratio_1_1"]}, "only=['ratio_1_1']: there are ratio_10_15"),
        ({"seeds": []}, "seeds=[]: at least one is needed"),
    ):
        with pytest.raises(UsageError, match="") as caught:
            run(chain, tmp_path / "b", **more)
        assert sentence in str(caught.value)
    with pytest.raises(UsageError, match="lacks corpus: run `aqaa walkthrough"):
        run(Chain(tmp_path), tmp_path / "b")
    assert not (tmp_path / "b").exists()
