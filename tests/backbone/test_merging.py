"""The weighted mean is exact, and refuses what does not fit."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aqaa.backbone.merging import mean, merge_files
from aqaa.errors import UsageError
from aqaa.storage import load_tensors, save_tensors


def write(folder: Path, *states: dict[str, Tensor]) -> list[Path]:
    paths = [folder / f"{i}.safetensors" for i in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        save_tensors(path, state, {"format": "pt"})
    return paths


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (5, 7), "b": (11,), "c": (2, 3, 4)}
    return {k: torch.randn(s, generator=generator).to(dtype) for k, s in shapes.items()}


def exact(values: list[float], weights: list[float]) -> float:
    pairs = zip(values, weights, strict=True)
    return float(sum(Fraction(w) * Fraction(v) for v, w in pairs) / sum(map(Fraction, weights)))


def test_the_papers_weights_by_hand(tmp_path: Path) -> None:
    tensors = [torch.tensor([2.2, -11.0]), torch.tensor([4.4, 0.0]), torch.tensor([11.0, 22.0])]
    sources = write(tmp_path, *({"x": t} for t in tensors))
    assert merge_files(sources, [5, 5, 1], tmp_path / "out") == 2
    # (5 * 2.2 + 5 * 4.4 + 11) / 11 = 4 and (-55 + 0 + 22) / 11 = -3
    assert load_tensors(tmp_path / "out")["x"].tolist() == pytest.approx([4.0, -3.0], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_mean_is_the_exact_one_rounded(dtype: torch.dtype) -> None:
    tensors = [state(i, dtype)["a"] for i in range(3)]
    found = mean(tensors, [5, 5, 1])
    assert found.dtype == dtype
    for i, value in enumerate(found.flatten()):
        wanted = exact([float(t.flatten()[i]) for t in tensors], [5, 5, 1])
        assert value == torch.tensor(wanted, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("weights", [[0.3, 0.0, 0.9], [1e-3, 7, 1e3]])
def test_weights_may_be_any_numbers(weights: list[float]) -> None:
    tensors = [state(i)["a"].double() for i in range(3)]
    for i, value in enumerate(mean(tensors, weights).flatten()):
        wanted = exact([float(t.flatten()[i]) for t in tensors], weights)
        assert float(value) == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [[5, 5, 1], [0.1, 0.7, 0.3]])
def test_a_merge_of_one_model_with_itself_is_that_model(
    weights: list[float], dtype: torch.dtype, tmp_path: Path
) -> None:
    sources = write(tmp_path, *[state(0, dtype)] * 3)
    merge_files(sources, weights, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == sources[0].read_bytes()


def test_a_weight_of_zero_leaves_a_model_out(tmp_path: Path) -> None:
    sources = write(tmp_path, state(0), state(1))
    count = merge_files(sources, [0, 3], tmp_path / "out")
    merged = load_tensors(tmp_path / "out")
    assert count == 35 + 11 + 24
    assert all(torch.equal(merged[k], v) for k, v in state(1).items())


@pytest.mark.parametrize(
    "weights", [[-1, 2], [0, 0], [float("nan"), 1], [float("inf"), 1], [1], []]
)
def test_unfit_weights_are_refused(weights: list[float], tmp_path: Path) -> None:
    sources = write(tmp_path, state(0), state(1))
    with pytest.raises(UsageError, match="weight"):
        merge_files(sources, weights, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _other(name: str) -> dict[str, Tensor]:
    changed = state(1)
    if name == "shape":
        changed["b"] = torch.zeros(12)
    elif name == "dtype":
        changed["b"] = changed["b"].half()
    elif name == "lacks":
        del changed["b"]
    else:
        changed["d"] = torch.zeros(1)
    return changed


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("shape", r"tensor b has .*\(11,\).*\(12,\)"),
        ("dtype", "tensor b has .*torch.float16.*torch.float32"),
        ("lacks", "differ in 1 tensors, e.g. b"),
        ("adds", "differ in 1 tensors, e.g. d"),
    ],
)
def test_models_that_do_not_fit_are_refused(name: str, sentence: str, tmp_path: Path) -> None:
    sources = write(tmp_path, state(0), _other(name))
    with pytest.raises(UsageError, match=sentence):
        merge_files(sources, [1, 1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    sources = write(tmp_path, state(0), state(1))
    sources[1].write_bytes(sources[1].read_bytes()[:-30])
    for second in (sources[1], tmp_path / "none.safetensors"):
        with pytest.raises(UsageError, match=f"cannot read {second}"):
            merge_files([sources[0], second], [1, 1], tmp_path / "out")
