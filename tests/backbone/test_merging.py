"""The weighted mean is exact to the last bit, needs no memory, goes on after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aqaa.backbone.mean import mean, room_for
from aqaa.backbone.merging import DIGEST, PART, Merged, Rows, merge_weights
from aqaa.backbone.shards import WEIGHTS, write_tensors
from aqaa.backbone.slices import StoredModel
from aqaa.errors import UsageError
from aqaa.storage import load_tensors, save_tensors
from tests.conftest import ROOT


def write(folder: Path, *states: dict[str, Tensor], shard_bytes: int = 10**9) -> list[Path]:
    paths = [folder / str(i) for i in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        path.mkdir()
        write_tensors(path, state.items(), shard_bytes=shard_bytes)
    return paths


def merge_folders(
    sources: list[Path], weights: list[float], out: Path, **more: Any
) -> Merged:
    return merge_weights([StoredModel.of(source) for source in sources], weights, out, **more)


def merged(
    sources: list[Path], weights: list[float], out: Path, **more: object
) -> dict[str, Tensor]:
    """What a merge writes."""
    out.mkdir(exist_ok=True)
    found = merge_folders(sources, weights, out, **more)
    return {k: v for file in found.files for k, v in load_tensors(out / f"{file}{PART}").items()}


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (5, 7), "b": (11,), "c": (2, 3, 4), "d": ()}
    return {k: torch.randn(s, generator=generator).to(dtype) for k, s in shapes.items()}


BITS = {torch.float32: (24, -149), torch.bfloat16: (8, -133), torch.float16: (11, -24)}


def rounded(value: Fraction, dtype: torch.dtype) -> float:
    """The number of ``dtype`` that is nearest, the even one of two; by integers alone."""
    bits, least = BITS[dtype]
    exponent = -10000 if value == 0 else _exponent(abs(value))
    unit = Fraction(2) ** max(exponent - bits + 1, least)
    return float(round(value / unit) * unit)


def _exponent(value: Fraction) -> int:
    found = value.numerator.bit_length() - value.denominator.bit_length()
    return found if value >= Fraction(2) ** found else found - 1


def exact(values: list[float], weights: list[float]) -> Fraction:
    pairs = zip(values, weights, strict=True)
    return sum(Fraction(w) * Fraction(v) for v, w in pairs) / sum(map(Fraction, weights))


def mean_of(tensors: list[Tensor], weights: list[float]) -> Tensor:
    out = torch.empty(tensors[0].numel(), dtype=tensors[0].dtype)
    room = room_for(len(out) + 3)
    parts = [(t.flatten(), w) for t, w in zip(tensors, weights, strict=True)]
    mean(parts, sum(weights), out, room)
    return out


def test_the_papers_weights_by_hand(tmp_path: Path) -> None:
    tensors = [torch.tensor([2.2, -11.0]), torch.tensor([4.4, 0.0]), torch.tensor([11.0, 22.0])]
    sources = write(tmp_path, *({"x": t} for t in tensors))
    found = merged(sources, [5, 5, 1], tmp_path / "out")
    # (5 * 2.2 + 5 * 4.4 + 11) / 11 = 4 and (-55 + 0 + 22) / 11 = -3
    assert found["x"].tolist() == pytest.approx([4.0, -3.0], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_mean_is_the_exact_one_rounded_once(dtype: torch.dtype) -> None:
    tensors = [torch.randn(3000, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    halves = [(0.01 * tensor).to(dtype) for tensor in tensors]
    for weights in ([5, 5, 1], [1, 1, 2]):  # of the second half of the means lie on a tie
        found = mean_of(halves, weights)
        assert found.dtype == dtype
        columns = zip(*(t.tolist() for t in halves), strict=True)
        wanted = [rounded(exact([*values], weights), dtype) for values in columns]
        assert found.tolist() == wanted


@pytest.mark.parametrize(("dtype", "ulp"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_no_second_rounding_on_the_way(dtype: torch.dtype, ulp: float) -> None:
    # A hair beside a tie: float32 lies on it, and would be rounded to the even side again.
    hair = 2.0**-30
    values = [1 + ulp / 2 + hair, 1 + 3 * ulp / 2 - hair, 1 + ulp / 2]
    values += [-value for value in values]
    found = torch.empty(6, dtype=dtype)
    mean([(torch.tensor(values, dtype=torch.float64), 1.0)], 1.0, found, room_for(6))
    repeated = torch.tensor(values * 100, dtype=torch.float64)
    many = torch.empty(600, dtype=dtype)
    mean([(repeated, 1.0)], 1.0, many, room_for(600))
    assert many.equal(found.repeat(100))
    assert found.tolist() == [1 + ulp, 1 + ulp, 1, -1 - ulp, -1 - ulp, -1]


@pytest.mark.parametrize("weights", [[0.3, 0.0, 0.9], [1e-3, 7, 1e3]])
def test_weights_may_be_any_numbers(weights: list[float]) -> None:
    tensors = [state(i)["a"].double() for i in range(3)]
    for i, value in enumerate(mean_of(tensors, weights)):
        wanted = exact([float(t.flatten()[i]) for t in tensors], weights)
        assert float(value) == pytest.approx(float(wanted), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [[5, 5, 1], [0.1, 0.7, 0.3]])
def test_a_merge_of_one_model_with_itself_is_that_model(
    weights: list[float], dtype: torch.dtype, tmp_path: Path
) -> None:
    mixed = {**state(0, dtype), "e": torch.tensor([-0.0, 1.0]), "f": torch.ones(3).double()}
    sources = write(tmp_path, *[mixed] * 3)
    merged(sources, weights, tmp_path / "out")
    written = (tmp_path / "out" / f"{WEIGHTS}{PART}").read_bytes()
    assert written == (sources[0] / WEIGHTS).read_bytes()


def test_a_weight_of_zero_leaves_a_model_out(tmp_path: Path) -> None:
    bad = {name: tensor * float("nan") for name, tensor in state(0).items()}
    sources = write(tmp_path, bad, state(1))
    found = merged(sources, [0, 3], tmp_path / "out")
    assert all(torch.equal(found[k], v) for k, v in state(1).items())


def test_blocks_and_shards_change_nothing(tmp_path: Path) -> None:
    # More numbers than a block, not a multiple of a slice; the models lie in other shards.
    parts = [{**state(i), "long": torch.randn(600_001)} for i in range(3)]
    sources = [write(_made(tmp_path / str(i)), part, shard_bytes=limit)[0]
               for i, (part, limit) in enumerate(zip(parts, (10**9, 100, 3000), strict=True))]
    whole = merged(sources, [5, 5, 1], tmp_path / "whole")
    for name, tensor in whole.items():
        wanted = mean_of([part[name] for part in parts], [5, 5, 1])
        assert tensor.flatten().equal(wanted) and tensor.shape == parts[0][name].shape
    found = merged(sources, [5, 5, 1], tmp_path / "shards", shard_bytes=200)
    assert len(list((tmp_path / "shards").glob(f"*{PART}"))) == 3
    assert found.keys() == whole.keys() and all(found[k].equal(whole[k]) for k in whole)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_rows_with_their_own_weights(tmp_path: Path) -> None:
    tables = [{"embed": torch.randn(9, 4), "odd": torch.randn(4, 9)} for _ in range(2)]
    rows = Rows(table_rows=9, start=3, stop=7, weights=[0, 1])
    found = merged(write(tmp_path, *tables), [1, 1], tmp_path / "out", rows=rows)
    half = {k: mean_of([t[k] for t in tables], [1, 1]).view_as(tables[0][k]) for k in tables[0]}
    assert found["odd"].equal(half["odd"])
    for row in range(9):
        wanted = tables[1]["embed"] if 3 <= row < 7 else half["embed"]
        assert found["embed"][row].equal(wanted[row])


@pytest.mark.parametrize(
    "weights", [[-1, 2], [0, 0], [float("nan"), 1], [float("inf"), 1], [1], []]
)
def test_unfit_weights_are_refused(weights: list[float], tmp_path: Path) -> None:
    sources = write(tmp_path, state(0), state(1))
    with pytest.raises(UsageError, match="weight"):
        merge_folders(sources, weights, tmp_path)
    with pytest.raises(UsageError, match="weight"):
        merge_folders(sources, [1, 1], tmp_path, rows=Rows(9, 0, 1, weights))
    assert not list(tmp_path.glob(f"*{PART}"))


def _other(name: str) -> dict[str, Tensor]:
    changed = state(1)
    if name == "shape":
        changed["b"] = torch.zeros(12)
    elif name == "dtype":
        changed["b"] = changed["b"].half()
    elif name == "lacks":
        del changed["a"], changed["b"], changed["c"], changed["d"]
        changed["x"] = torch.zeros(1)
    else:
        changed["e"] = torch.zeros(1)
    return changed


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("shape", r"1 tensors, b: tensor b has F32 \[12\] and F32 \[11\]"),
        ("dtype", r"1 tensors, b: tensor b has F16 \[11\] and F32 \[11\]"),
        ("lacks", "differ in 5 tensors, which one of them lacks: a, b, c and others"),
        ("adds", "differ in 1 tensors, which one of them lacks: e"),
    ],
)
def test_models_that_do_not_fit_are_refused(name: str, sentence: str, tmp_path: Path) -> None:
    sources = write(tmp_path, state(0), _other(name))
    with pytest.raises(UsageError, match=f"^{re.escape(str(sources[1]))}.*{sentence}"):
        merge_folders(sources, [1, 1], tmp_path)
    assert not list(tmp_path.glob(f"*{PART}"))


def test_whole_numbers_have_no_mean(tmp_path: Path) -> None:
    sources = write(tmp_path, *[{"count": torch.ones(2, dtype=torch.int64)}] * 2)
    with pytest.raises(UsageError, match="count holds I64, of which there is no mean"):
        merge_folders(sources, [1, 1], tmp_path)


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    sources = write(tmp_path, state(0), state(1))
    damaged = sources[1] / WEIGHTS
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with pytest.raises(UsageError, match=f"cannot read {damaged}"):
        merge_folders(sources, [1, 1], tmp_path)
    with pytest.raises(UsageError, match="holds neither"):
        merge_folders([sources[0], tmp_path / "none"], [1, 1], tmp_path)


# ---- kills and memory, in processes of their own

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from aqaa.backbone.merging import merge_weights
from aqaa.backbone.slices import StoredModel

torch.randn(1 << 16).double().mul_(2).float().bfloat16()  # what torch loads late is not ours
def line(name):
    text = Path("/proc/self/status").read_text()
    return int(text.split(name + ":")[1].split()[0]) * 1024

before, most = line("RssAnon"), 0
real = StoredModel.read
def read(self, *args):
    global most
    most = max(most, line("RssAnon"))
    return real(self, *args)
StoredModel.read = read
out, limit, *sources = sys.argv[1:]
models = [StoredModel.of(Path(s)) for s in sources]
merge_weights(models, [5, 5, 1], Path(out), shard_bytes=int(limit))
print(json.dumps(most - before))
"""


def started(out: Path, limit: int, sources: list[Path]) -> "subprocess.Popen[str]":
    out.mkdir(exist_ok=True)
    words = [sys.executable, "-c", SCRIPT, str(out), str(limit), *map(str, sources)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of 92 MB, of which one tensor alone is 75 MB."""
    folder = tmp_path_factory.mktemp("large")
    paths = []
    for i in range(3):
        noise = torch.randn(2 << 20, generator=torch.Generator().manual_seed(i))
        tensors = {"a": noise.repeat(9), "b": noise, "c": -noise}
        (folder / str(i)).mkdir()
        save_tensors(folder / str(i) / WEIGHTS, tensors, {"format": "pt"})
        paths.append(folder / str(i))
    return paths


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_model(large: list[Path], tmp_path: Path) -> None:
    said, _ = started(tmp_path / "out", 10**9, large).communicate(timeout=240)
    assert 0 < json.loads(said) <= 64e6  # a single tensor of a single model has 75 MB


def test_a_killed_merge_goes_on_with_the_file_it_was_at(large: list[Path], tmp_path: Path) -> None:
    out, limit = tmp_path / "out", 9 << 20  # three files: a, b and c
    begun = started(out, limit, large)
    first = out / f"model-00001-of-00003.safetensors{DIGEST}"
    until = time.monotonic() + 240
    while not first.is_file() and begun.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    begun.send_signal(signal.SIGKILL)
    begun.communicate()
    assert first.is_file()
    done = {p: p.stat().st_mtime_ns for p in out.glob(f"*{DIGEST}")}
    assert not list(out.rglob("*.safetensors"))  # nothing that anybody would load
    damaged = out / f"model-00003-of-00003.safetensors{PART}"
    damaged.write_bytes(b"half of it")
    merge_folders(large, [5, 5, 1], out, shard_bytes=limit)
    assert all(p.stat().st_mtime_ns == wrote for p, wrote in done.items())
    for i, name in enumerate("abc"):
        parts = [load_tensors(source / WEIGHTS)[name] for source in large]
        found = load_tensors(out / f"model-{i + 1:05}-of-00003.safetensors{PART}")[name]
        assert found.equal(mean_of(parts, [5, 5, 1]))
    part = Path(str(first).removesuffix(DIGEST) + PART)
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)  # what is found damaged is made again
    again = merge_folders(large, [5, 5, 1], out, shard_bytes=limit)
    data[-1] ^= 1
    assert part.read_bytes() == bytes(data) and len(again.hashes) == 3
