"""Two tiny trainings are compared: with the same settings, and with one that differs."""

import csv
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch

from aqaa.storage import save_tensors
from tests.conftest import ROOT, Chain


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "compare_losses.py"
    spec = importlib.util.spec_from_file_location("compare_losses", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal runs of two ranks and two steps, as a training leaves them."""
    for side in "ab":
        run = tmp_path / side / "run"
        for step in (1, 2):
            folder = run / "checkpoints" / f"step_{step:08d}"
            folder.mkdir(parents=True)
            for rank in (0, 1):
                tensors = {"moment": torch.full((3,), 10.0 * step + rank), "nan": torch.tensor(
                    [float("nan")])}  # fmt: skip
                save_tensors(folder / f"shard_{rank:05d}.safetensors", tensors)
        (run / "model").mkdir()
        save_tensors(run / "model" / "model.safetensors", {"w": torch.arange(4.0)})
        write_losses(run, {0: 2.0, 1: 1.5, 2: 1.25})
    return tmp_path / "a" / "run", tmp_path / "b" / "run"


def write_losses(run: Path, losses: dict[int, float]) -> None:
    with open(run / "metrics.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", "train/loss"])
        table.writerows(losses.items())


def test_equal_runs_have_no_difference(tool: ModuleType, runs: tuple[Path, Path]) -> None:
    assert list(tool.differences(*runs)) == []


def test_the_first_step_tensor_and_rank_are_named(
    tool: ModuleType, runs: tuple[Path, Path]
) -> None:
    a, b = runs
    write_losses(b, {0: 2.0, 1: 1.5, 2: 1.25000001})
    shard = b / "checkpoints" / "step_00000002" / "shard_00001.safetensors"
    changed = torch.full((3,), 21.0)
    changed[1] = torch.nextafter(changed[1], torch.tensor(30.0))  # one bit
    save_tensors(shard, {"moment": changed, "nan": torch.tensor([float("nan")])})
    found = list(tool.differences(a, b))
    assert len(found) == 2
    assert found[0].startswith("step 2: rank 1, checkpoints/step_00000002/shard_00001.safetensors")
    assert "tensor moment differs in 1 values, by 1.91e-06" in found[0]
    assert found[1] == "step 2: train/loss is 1.25 and 1.25000001"


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"w": torch.arange(4.0), "v": torch.ones(1)}, "tensor v is only in b"),
        ({"w": torch.arange(4.0).bfloat16()}, "torch.float32 (4,) and torch.bfloat16 (4,)"),
        ({"w": torch.tensor([-0.0, 1, 2, 3])}, "tensor w differs"),  # equal, but not the same bits
    ],
)
def test_tensors_of_another_kind_are_found(
    tool: ModuleType, runs: tuple[Path, Path], tensors: dict[str, torch.Tensor], sentence: str
) -> None:
    save_tensors(runs[1] / "model" / "model.safetensors", tensors)
    (found,) = tool.differences(*runs)
    assert found.startswith("step 3: model/model.safetensors") and sentence in found


def test_a_missing_file_is_found(tool: ModuleType, runs: tuple[Path, Path]) -> None:
    shutil.rmtree(runs[1] / "checkpoints" / "step_00000001")
    found = list(tool.differences(*runs))
    assert found[0].endswith("step_00000001/shard_00000.safetensors is missing in b")


def test_two_configurations_are_trained_and_compared(
    tool: ModuleType, chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = chain.words("sft_1", tmp_path, "run.steps=3", "optim.warmup_steps=1")
    common = [w for w in words if not w.startswith(("run.root", "run.name", "run.save_every_s"))]
    common = [w for w in common if w != "trainer.log_every_n_steps=1"]
    again = "trainer.val_check_interval=2"
    assert tool.main([again, again, "--", *common]) == 0
    assert "bit-equal: losses of " in capsys.readouterr().out
    assert tool.main(["optim.lr=1e-3", "optim.lr=1.0001e-3", "--", *common]) == 1
    said = capsys.readouterr().out
    # Step 0 has the same loss; what its update leaves differs.
    assert said.startswith("they differ: step 1: checkpoints/step_00000001/state.safetensors")
    assert tool.main(["optim.lr=high", "optim.lr=1e-3", "--", *common]) == 2
    assert "optim.lr = 'high' does not fit" in capsys.readouterr().err


def test_what_is_neither_commit_nor_override_is_refused(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["no-such-commit", "HEAD", "--", "sft"]) == 2
    assert "no-such-commit is no commit here" in capsys.readouterr().err


# A training of three steps whose weight is FACTOR times itself plus one.
CODE = """
import csv, sys
from pathlib import Path
import numpy
from safetensors.numpy import save_file

given = dict(word.split("=", 1) for word in sys.argv[2:])
run = Path(given["run.root"]) / given["run.name"]
weight, losses = numpy.float32(int(given["run.seed"])), []
for step in range(3):
    losses.append({"step": step, "train/loss": float(weight * weight)})
    weight = weight * numpy.float32(FACTOR) + numpy.float32(1)
    folder = run / "checkpoints" / f"step_{step + 1:08d}"
    folder.mkdir(parents=True)
    save_file({"weight": numpy.array([weight])}, str(folder / "state.safetensors"))
with open(run / "metrics.csv", "w", newline="") as file:
    table = csv.DictWriter(file, ["step", "train/loss"])
    table.writeheader()
    table.writerows(losses)
"""


@pytest.fixture
def checkout(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose commits `first`, `same` and `other` train as their names say."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "checkout"
    (folder / "aqaa").mkdir(parents=True)
    (folder / "conf" / "run").mkdir(parents=True)
    (folder / "conf" / "run" / "default.yaml").write_text("name: run\n")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # of a hook that runs the tests
        monkeypatch.delenv(name, raising=False)
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)

    git("init", "--quiet")
    code = folder / "aqaa" / "__main__.py"
    for name, factor in (("first", "0.5"), ("same", "1 / 2"), ("other", "0.5 + 2**-20")):
        code.write_text(CODE.replace("FACTOR", factor))
        git("add", "--all")
        git("commit", "--quiet", "--no-verify", "--message", name)
        git("tag", name)
    code.write_text("raise SystemExit('the working tree is not what was asked for')")
    monkeypatch.setattr(tool, "ROOT", folder)
    return folder


def test_two_commits_are_trained_and_compared(
    tool: ModuleType, checkout: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(ROOT)  # whose own code must not be what is run
    assert tool.main(["--seed", "3", "first", "same", "--", "sft"]) == 0
    assert "bit-equal: losses of 3 logged steps and every saved tensor" in capsys.readouterr().out
    assert tool.main(["--seed", "3", "first", "other", "--", "sft"]) == 1
    assert capsys.readouterr().out.startswith(
        "they differ: step 1: checkpoints/step_00000001/state.safetensors: tensor weight differs "
        "in 1 values, by 2.86e-06 at most"
    )
    # From 0 the first update is the same: the difference comes a step later.
    assert tool.main(["first", "other", "--", "sft"]) == 1
    assert capsys.readouterr().out.startswith("they differ: step 2: checkpoints/step_00000002/")
    assert tool.main(["first", "none-such", "--", "sft"]) == 2
    listed = subprocess.run(
        ["git", "-C", str(checkout), "worktree", "list"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(listed) == 1 and os.path.samefile(listed[0].split()[0], checkout)
