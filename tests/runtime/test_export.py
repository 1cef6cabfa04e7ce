"""A run's saved state, of one process or of shards, becomes a folder that transformers reads."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from aqaa.backbone.loading import load_backbone
from aqaa.backbone.shards import read_tensors
from aqaa.errors import UsageError
from aqaa.runtime.export import export
from aqaa.states import saved_states, step_folder
from aqaa.storage import load_tensors, verify_manifest, write_json, write_manifest
from tests.alive import Alive
from tests.runtime.two_ranks import write_models
from tests.saved import save, save_plain, save_sharded


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    write_models(folder)
    return folder / "init"


def trained(start: Path) -> dict[str, Any]:
    """Other weights than it started from."""
    torch.manual_seed(1)
    state = load_tensors(start / "model.safetensors")
    return {name: torch.randn(tensor.shape) for name, tensor in state.items()}


def leave(run: Path, start: Path, ranks: int) -> None:
    """The state of step 7, of so many ranks or of one process."""
    if ranks:
        save_sharded(run, start, 7, trained(start), ranks)
    else:
        save_plain(run, start, 7, trained(start))


def logits(folder: Path) -> torch.Tensor:
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        found: torch.Tensor = load_backbone(folder).model(input_ids=ids).logits
    return found


@pytest.mark.parametrize("ranks", [0, 1, 2, 5])
def test_logits_are_equal_after_the_way_out(ranks: int, start: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    leave(run, start, ranks)
    assert export(source=str(run), out=str(out), shard_bytes=100_000) == out
    verify_manifest(out)
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    wanted = trained(start)
    assert all(tensor.equal(wanted[name]) for name, tensor in read_tensors(out))
    model = load_backbone(start).model
    model.load_state_dict(wanted)
    with torch.no_grad():
        expected = model(input_ids=torch.arange(24).view(2, 12)).logits
    assert logits(out).equal(expected) and not logits(start).equal(expected)


@pytest.mark.parametrize("ranks", [0, 3])
def test_a_file_of_it_is_in_memory_at_a_time(
    ranks: int, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aqaa.runtime import export as module

    run, alive, limit = tmp_path / "run", Alive(), 20_000
    leave(run, start, ranks)
    real = module.narrowed
    monkeypatch.setattr(module, "narrowed", lambda *args: alive.see(real(*args)))
    export(source=str(run), out=str(tmp_path / "out"), shard_bytes=limit)
    total = sum(tensor.nbytes for tensor in trained(start).values())
    # The two tables lie beside one another: one is held, the other does not fit to it.
    assert limit < alive.largest <= alive.most <= 2 * alive.largest + limit
    assert alive.most < total


def test_a_real_run_is_exported_as_it_ended(tmp_path: Path, start: Path) -> None:
    from tests.runtime.sharded import STEPS, train

    run = tmp_path / "run"
    shutil.copytree(start, tmp_path / "init")
    train(run, tmp_path / "init", "", ranks=1, cut=STEPS - 1)
    write_json(run / "parents.json", {"model": {"path": str(tmp_path / "init")}})
    export(source=str(run), out=str(tmp_path / "before"))
    train(run, tmp_path / "init", "", ranks=1)
    last = load_tensors(run / "model/model.safetensors")
    before = load_tensors(tmp_path / "before/model.safetensors")
    assert before.keys() == last.keys()
    assert 0 < max(float((before[k] - last[k]).abs().max()) for k in last) < 0.05  # a step away
    # Once it is finished, the end is what is exported; a step can still be named.
    write_manifest(run / "model")
    write_json(run / "lineage.json", {})
    export(source=str(run), out=str(tmp_path / "end"))
    end = load_tensors(tmp_path / "end/model.safetensors")
    name = "model.norm.weight"
    assert end.keys() == last.keys() and all(end[k].equal(last[k]) for k in last)
    export(source=str(run), out=str(tmp_path / "end"), step=STEPS - 1)
    assert load_tensors(tmp_path / "end/model.safetensors")[name].equal(before[name])
    (run / "model/model.safetensors").write_bytes(b"cut")
    with pytest.raises(UsageError, match="model.safetensors is damaged"):
        export(source=str(run), out=str(tmp_path / "none"))


def test_another_precision_and_another_step(start: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_plain(run, start, 3, trained(start))
    save(run, start, 4, {"state_dict": {f"decoder.{k}": v * 0 for k, v in trained(start).items()}})
    export(source=str(run), out=str(tmp_path / "out"), step=3, dtype="bfloat16")
    for name, tensor in read_tensors(tmp_path / "out"):
        assert tensor.equal(trained(start)[name].bfloat16())


def test_a_damaged_state_is_named_and_the_one_before_taken(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    save_plain(run, start, 3, trained(start))
    save_sharded(run, start, 4, trained(start), 2)
    last = step_folder(run / "checkpoints", 4) / "shard_00001.safetensors"
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    export(source=str(run), out=str(tmp_path / "out"))
    streams = capsys.readouterr()
    assert f"{last} is damaged" in streams.err and "step 3 of" in streams.out
    with pytest.raises(UsageError, match="shard_00001.safetensors is damaged"):
        export(source=str(run), out=str(tmp_path / "out"), step=4)


def test_what_cannot_be_exported_is_one_sentence(start: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", str(tmp_path / "out")

    def refused(sentence: str, **more: Any) -> None:
        with pytest.raises(UsageError, match=sentence) as caught:
            export(source=str(run), out=out, **more)
        assert "\n" not in str(caught.value) and not Path(out).exists()

    refused("run holds no saved state")
    save(run, start, 1, {"state_dict": {"flow.weight": torch.zeros(2)}})
    refused("run trains no backbone")
    refused("there are 1", step=5)
    refused("dtype=int8 is none of", dtype="int8")
    save(run, start, 2, {"state_dict": {"decoder.lora_A.weight": torch.zeros(2)}})
    refused("has lora_A.weight, which .* has not: an adapter")
    save(run, start, 3, {"state_dict": {"decoder.model.norm.weight": torch.zeros(2)}})
    refused(r"model.norm.weight is \[2\], but .* has \[16\]")
    write_json(run / "parents.json", {"corpus": {"path": "here"}})
    refused("run starts from no model")
    (run / "parents.json").unlink()
    refused("parents.json does not exist")
    assert saved_states(run / "checkpoints")
