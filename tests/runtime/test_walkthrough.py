"""The smallest whole walkthrough, run once for real: what it leaves is whole, true and kept."""

import re
import subprocess
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from aqaa import cli
from aqaa.audio.file import read_audio
from aqaa.data.manifest import read_manifest
from aqaa.errors import UsageError
from aqaa.evaluation.report import MAX_BYTES
from aqaa.lineage import read_lineage
from aqaa.runtime.compose import compose
from aqaa.runtime.schedule import Step
from aqaa.runtime.walkthrough import finish, print_table, stage_records
from aqaa.storage import load_tensors, read_json, verify_manifest
from tests.conftest import ROOT, Walkthrough

BOOKS = ["tokenizer_linguistic", "tokenizer_semantic"]
PARENTS = {
    "tokenizer_linguistic": [],
    "tokenizer_semantic": [],
    "pretrain": BOOKS,
    "sft_1": [*BOOKS, "pretrain"],
    "sft_2": [*BOOKS, "sft_1"],
    "dpo": [*BOOKS, "sft_1"],
    "merge": ["sft_1", "sft_2", "dpo"],
    "vocoder_flow": BOOKS,
    "vocoder_waveform": [],
}
HEADLINES = ("answers_correct", "text_correct", "text_audio_agreement")
YARDSTICKS = ("ground_truth_recognised", "resynthesis_recognised", "tokenizer_ceiling")
ANSWERS = ["answers_dpo_0", "answers_merge_0", "answers_merge_1", "answers_sft_1_0",
           "answers_sft_2_0"]  # fmt: skip


@cache
def settings() -> DictConfig:
    return compose("walkthrough", ["preset=walkthrough/smoke"])


@pytest.mark.parametrize("stage", list(PARENTS))
def test_every_stage_is_a_sealed_run(stage: str, smoke: Walkthrough) -> None:
    run, record = smoke / stage, read_lineage(smoke / stage)
    assert record is not None and record.run == stage
    assert verify_manifest(run / "model")
    assert all(parent.verified for parent in record.parents.values())
    if stage != "merge":
        assert (run / "config.yaml").is_file() and (run / "checkpoints").is_dir()
        assert record.steps == settings().steps[stage]


@pytest.mark.parametrize("name", ["corpus", "tokens", "init", "pairs", "model", *ANSWERS])
def test_everything_between_is_sealed(name: str, smoke: Walkthrough) -> None:
    assert verify_manifest(smoke / name)


def test_nothing_half_written_is_left(smoke: Walkthrough) -> None:
    expected = {"corpus", "tokens", "init", "pairs", "model", *ANSWERS, *PARENTS}
    expected |= {"steps", "results.json", "report.html", "pairs.scores"}
    assert {p.name for p in smoke.folder.iterdir()} == expected


def test_results_hold_the_flat_figures_and_what_is_behind_them(smoke: Walkthrough) -> None:
    results = read_json(smoke / "results.json")
    flat = {*HEADLINES, *YARDSTICKS}
    assert results.keys() == {*flat, "details", "control", "stages", "seed", "versions"}
    for name in flat:
        assert isinstance(results[name], float)
        assert results[name] == results["details"][name]["value"]
    for name, figure in results["details"].items():
        assert figure.keys() - {"reason"} == {"value", "n", "ci95", "split"}, name
        assert ("reason" in figure) == (figure["value"] is None) == (figure["n"] == 0)
        if figure["n"]:
            assert 0 <= figure["ci95"][0] <= figure["value"] <= figure["ci95"][1] <= 1
    for name in HEADLINES:
        assert {f"{name}.held_out", f"{name}.trained"} < results["details"].keys()
        assert all(f"{part}.{name}" in results["details"] for part in ("sft_1", "sft_2", "dpo"))
    assert results["control"].keys() == {"slow", "quick", "high", "low"}
    assert all({"duration_ratio", "f0_ratio", "n"} <= c.keys() for c in results["control"].values())
    assert results["seed"] == 0
    assert {"aqaa", "torch", "lightning"} <= results["versions"].keys()
    # The synthesiser's own clips say whether the judge hears at all.
    assert results["ground_truth_recognised"] > 0.9


def test_the_figures_are_those_of_the_rows(smoke: Walkthrough) -> None:
    details = read_json(smoke / "results.json")["details"]
    corpus = {row["id"]: row for row in read_manifest(smoke / "corpus" / "test.jsonl")}
    rows = {name: read_manifest(smoke / name / "answers.jsonl") for name in ANSWERS}
    merged = rows["answers_merge_0"] + rows["answers_merge_1"]
    # Two shards: every question once; its parts answered the first few of the same questions.
    assert sorted(row["id"] for row in merged) == sorted(corpus) and len(corpus) == settings().test
    for part in ("sft_1", "sft_2", "dpo"):
        asked = [row["id"] for row in rows[f"answers_{part}_0"]]
        assert asked == list(corpus)[: settings().compared]
        assert details[f"{part}.answers_correct"]["n"] == settings().compared
    heard = sum(row["heard"] == row["expected"] for row in merged)
    assert details["answers_correct"]["value"] == heard / len(merged)
    held_out = [row for row in merged if corpus[row["id"]]["meta"]["held_out"]]
    assert details["answers_correct.held_out"]["n"] == len(held_out)


def test_stage_records_tell_the_chain(smoke: Walkthrough) -> None:
    stages = read_json(smoke / "results.json")["stages"]
    keys = {"stage", "run", "parents", "steps", "seconds", "parameters"}
    assert all(record.keys() == keys for record in stages)
    assert {record["stage"]: record["parents"] for record in stages} == PARENTS
    assert [record["stage"] for record in stages] == list(PARENTS)
    by_name = {record["stage"]: record for record in stages}
    for stage, steps in settings().steps.items():
        assert by_name[stage]["steps"] == steps and by_name[stage]["seconds"] > 0
        assert Path(by_name[stage]["run"]) == smoke / stage
    tensors = load_tensors(smoke / "merge" / "model" / "model.safetensors")
    count = sum(tensor.numel() for tensor in tensors.values())
    assert {by_name[s]["parameters"] for s in ("pretrain", "sft_1", "sft_2", "dpo", "merge")} == {
        count
    }


def test_the_merge_is_the_exact_mean_rounded_once(smoke: Walkthrough) -> None:
    parts = [load_tensors(smoke / p / "model/model.safetensors") for p in ("sft_1", "sft_2", "dpo")]
    merged = load_tensors(smoke / "merge/model/model.safetensors")
    moved = 0
    for name, tensor in merged.items():
        one, two, three = (part[name] for part in parts)
        mean = (5 * one.double() + 5 * two.double() + three.double()) / 11
        assert tensor.dtype == one.dtype == torch.float32
        assert torch.equal(tensor, mean.float()), name
        moved += not torch.equal(one, three)
        numbers = [t.flatten()[:20].tolist() for t in (one, two, three)]
        for k, (a, b, c) in enumerate(zip(*numbers, strict=True)):
            exact = (5 * Fraction(a) + 5 * Fraction(b) + Fraction(c)) / 11
            assert tensor.flatten()[k].item() == np.float32(float(exact))
    assert moved > 10
    bundled = load_tensors(smoke / "model/backbone/model.safetensors")
    assert all(torch.equal(tensor, bundled[name]) for name, tensor in merged.items())


def test_its_model_answers_from_the_command_line(
    smoke: Walkthrough, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")
    row = read_manifest(smoke / "answers_merge_0" / "answers.jsonl")[0]
    model = smoke.words[-1].removeprefix("out=")
    question = str(smoke / "answers_merge_0" / row["question"])
    out = tmp_path / "answer.wav"
    assert cli.main(["answer", question, f"model={model}", f"out={out}"]) == 0
    said = capfd.readouterr().out
    assert f"model: {smoke / 'model'}\n" in said and f"text:  {row['text']}\n" in said
    again = read_audio(smoke / "answers_merge_0" / row["answer"]).samples
    # Another number of threads sums in another order: a step of the 16-bit file may differ.
    np.testing.assert_allclose(read_audio(out).samples, again, rtol=0, atol=1.5 / 2**15)


def test_the_report_needs_no_other_file(smoke: Walkthrough) -> None:
    page = (smoke / "report.html").read_text()
    assert len(page.encode()) <= MAX_BYTES and page.rstrip().endswith("</html>")
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", page)
    assert addresses
    assert [a for a in addresses if not a.startswith(("data:", "#"))] == []
    assert page.count("<article") == settings().test
    assert page.count("data:audio/") >= settings().test
    for stage in PARENTS:
        assert stage.replace("_", " ") in page or stage in page


def test_it_ends_with_a_table_that_a_narrow_terminal_shows_whole(
    smoke: Walkthrough, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert smoke.said.rstrip().endswith(str(smoke / "report.html"))
    assert all(name in smoke.said for name in (*HEADLINES, *YARDSTICKS, "slow duration_ratio"))
    monkeypatch.setenv("COLUMNS", "80")
    print_table(read_json(smoke / "results.json"))
    table = capsys.readouterr().out
    assert "text_audio_agreement.held_out" in table and "…" not in table
    assert max(map(len, table.splitlines())) <= 80


def test_a_second_run_keeps_everything(smoke: Walkthrough) -> None:
    before, results = times(smoke.folder), read_json(smoke / "results.json")
    done = subprocess.run(smoke.words, capture_output=True, text=True, cwd=ROOT, check=True)
    kept = re.search("^kept: (.*)$", done.stdout, re.MULTILINE)
    assert kept is not None and "begun" not in done.stdout
    assert set(kept[1].split(", ")) == {p.stem for p in (smoke / "steps").iterdir()}
    assert times(smoke.folder) == before
    assert read_json(smoke / "results.json") == results


def times(folder: Path) -> dict[str, int]:
    """When each file was written, but for those a run always writes last."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns
        for p in files
        if p.name not in ("results.json", "report.html") or p.parent != folder
    }


def test_a_run_folder_cut_in_half_is_made_again_and_the_rest_kept(smoke: Walkthrough) -> None:
    weights = smoke / "sft_2" / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    (smoke / "model" / "backbone" / "model.safetensors").unlink()
    done = subprocess.run(smoke.words, capture_output=True, text=True, cwd=ROOT, check=True)
    begun = re.findall(r"^(\w+): begun$", done.stdout, re.MULTILINE)
    assert begun == ["sft_2", "model"]
    assert "model.safetensors is damaged" in done.stdout and "is missing; making it" in done.stdout
    assert weights.read_bytes() == whole


def test_an_unfinished_stage_and_left_over_answers_are_no_results(
    smoke: Walkthrough, tmp_path: Path
) -> None:
    for path in smoke.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name in ("results.json", "report.html"):
        (tmp_path / name).unlink()
    steps = [Step(p.stem, (), (), tmp_path / p.stem) for p in (smoke / "steps").iterdir()]
    (tmp_path / "answers_merge_7").symlink_to(smoke / "answers_merge_1")  # of an older run
    finish(tmp_path, steps, seed=0, shown=1, settings={})
    details = read_json(tmp_path / "results.json")["details"]
    assert details["answers_correct"]["n"] == settings().test
    (tmp_path / "dpo").unlink()
    with pytest.raises(UsageError, match="dpo is not a finished run: run the walkthrough again"):
        stage_records(tmp_path, steps)
