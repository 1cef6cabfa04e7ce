"""The demo checkpoint is made from a walkthrough that answered right."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from aqaa.audio.file import read_audio
from aqaa.data.manifest import read_manifest, write_manifest
from aqaa.pipeline import Pipeline
from aqaa.storage import load_tensors, read_json, verify_manifest
from tests.conftest import ROOT, Walkthrough


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "make_demo.py"
    spec = importlib.util.spec_from_file_location("make_demo", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(smoke: Walkthrough, tmp_path: Path) -> Path:
    """A copy of what the tool reads; every answer in it is wrong."""
    run = tmp_path / "run"
    (run / "corpus").mkdir(parents=True)
    for name in ("results.json", "corpus/domain.json"):
        shutil.copy(smoke / name, run / name)
    for name in ("model", "answers_merge_0", "answers_merge_1"):
        shutil.copytree(smoke / name, run / name)
    plant(run, heard="nothing")
    return run


def plant(run: Path, count: int = 1000, **values: Any) -> None:
    """Set values in the first rows of both shards."""
    for shard in ("answers_merge_0", "answers_merge_1"):
        path = run / shard / "answers.jsonl"
        rows = read_manifest(path)
        write_manifest(path, [{**r, **(values if i < count else {})} for i, r in enumerate(rows)])


RIGHT = {"text": "snow is white", "expected": "snow is white", "heard": "snow is white",
         "held_out": True, "style": "plain", "family": "col"}  # fmt: skip


def test_a_right_answer_makes_a_demo(tool: ModuleType, run: Path, tmp_path: Path) -> None:
    plant(run, count=1, **RIGHT)
    out = tmp_path / "demo"
    assert tool.main([str(run), str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {
        "tokenizer", "backbone", "vocoder", "card.json", "question.wav", "MANIFEST.sha256",
    }  # fmt: skip
    assert verify_manifest(out)
    files = list(out.rglob("*.safetensors"))
    assert len(files) == 5
    dtypes = {tensor.dtype for file in files for tensor in load_tensors(file).values()}
    assert torch.float16 in dtypes and torch.float32 not in dtypes
    row = read_manifest(run / "answers_merge_0" / "answers.jsonl")[0]
    asked = run / "answers_merge_0" / row["question"]
    assert (out / "question.wav").read_bytes() == asked.read_bytes()
    assert Pipeline.load(out).answer(read_audio(out / "question.wav")).ids


def test_the_card_tells_where_it_comes_from(tool: ModuleType, run: Path, tmp_path: Path) -> None:
    plant(run, count=1, **RIGHT)
    tool.make(run, tmp_path / "demo")
    card, results = read_json(tmp_path / "demo" / "card.json"), read_json(run / "results.json")
    row = read_manifest(run / "answers_merge_0" / "answers.jsonl")[0]
    assert card["question"] == {
        "text": row["question_text"], "expected": "snow is white", "voice": row["voice"],
    }  # fmt: skip
    assert card["seed"] == results["seed"] and card["versions"] == results["versions"]
    assert card["data"]["counts"]["test"] == 8
    assert card["figures"].keys() == set(tool.HEADLINES)
    for name, figure in card["figures"].items():
        assert figure == results["details"][name]
    assert card["steps"] == {s["stage"]: s["steps"] for s in results["stages"]}
    assert str(tmp_path) not in (tmp_path / "demo" / "card.json").read_text()
    assert (card["precision"], card["licence"]) == ("float16", "Apache-2.0")


@pytest.mark.parametrize(
    "wrong", [{"heard": ""}, {"text": ""}, {"held_out": False}, {"style": "slow"},
              {"family": "snd"}], ids=str,
)  # fmt: skip
def test_without_a_right_answer_there_is_none(
    tool: ModuleType, run: Path, tmp_path: Path, wrong: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plant(run, **{**RIGHT, **wrong})
    assert tool.main([str(run), str(tmp_path / "demo")]) == 2
    said = capsys.readouterr().err
    assert "answered no held-out colour question right: train longer" in said
    assert said.count("\n") == 1 and not (tmp_path / "demo").exists()


def test_wrong_use_is_one_line(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([]) == tool.main([str(tmp_path), "a", "b"]) == 2
    assert tool.main([str(tmp_path), str(tmp_path / "demo")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["usage", "usage", "make_demo"]
    assert f"{tmp_path / 'results.json'} does not exist" in lines[-1]
