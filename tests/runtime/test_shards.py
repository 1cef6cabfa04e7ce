"""A ZeRO run is taken up bit for bit on as many ranks, and within rounding on any other number."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from aqaa.errors import UsageError
from aqaa.runtime.checkpoint import StateFiles, read_state
from aqaa.runtime.shards import MASTER, WholeCopies, optimizer_state, unsharded
from aqaa.states import saved_states
from aqaa.storage import load_tensors, read_json, verify_manifest
from tests.conftest import ROOT
from tests.runtime.sharded import CUT, STEPS, train, write_tied
from tests.runtime.two_ranks import LORA

BATCHES = 4 * STEPS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All trainings: one process first, whose cut state two take up, then two, then one again."""
    folder = tmp_path_factory.mktemp("sharded")
    write_tied(folder / "init")
    found: dict[str, Any] = {"whole": train(folder / "one", folder / "init", "", ranks=1)}
    found["from_one"] = train(folder / "from_one", folder / "init", "", ranks=1, cut=CUT)
    found["lora"] = train(folder / "lora", folder / "init", "", ranks=1, adapter=LORA)
    train(folder / "lora_on", folder / "init", "", ranks=1, cut=CUT, adapter=LORA)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words += ["-m", "tests.runtime.sharded", str(folder)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    told: dict[str, Any] = {"capture_output": True, "text": True, "cwd": ROOT, "env": environment}
    done = subprocess.run([sys.executable, *words], **told, timeout=600)  # a hang is a failure
    assert done.returncode == 0, done.stdout + done.stderr
    states = folder / "back" / "checkpoints"
    assert saved_states(states)
    found["back_state"] = str(saved_states(states)[0])
    found["back"] = train(folder / "back", folder / "init", "", ranks=1)
    assert saved_states(folder / "lora_back" / "checkpoints")
    found["lora_back"] = train(folder / "lora_back", folder / "init", "", ranks=1, adapter=LORA)
    (folder / "alone.json").write_text(json.dumps(found))
    return folder


def alone(folder: Path, name: str) -> list[float]:
    losses: list[float] = json.loads((folder / "alone.json").read_text())[name]["losses"]
    return losses


def together(folder: Path, name: str) -> list[float]:
    """Losses of all batches in their order, which the ranks took in turns."""
    told = [json.loads((folder / f"told.{rank}.json").read_text())[name] for rank in (0, 1)]
    first, second = (seen["losses"] for seen in told)
    return [loss for pair in zip(first, second, strict=True) for loss in pair]


def model(run: Path) -> bytes:
    return (run / "model/model.safetensors").read_bytes()


def furthest(a: Path, b: Path) -> float:
    one, two = (load_tensors(run / "model/model.safetensors") for run in (a, b))
    return max(float((one[k] - two[k]).abs().max()) for k in one)


def test_two_ranks_go_on_as_if_nothing_had_been(folder: Path) -> None:
    assert together(folder, "same") == together(folder, "whole")
    assert len(together(folder, "same")) == BATCHES
    assert model(folder / "same") == model(folder / "whole")


def test_so_do_bf16_and_small_parameters_kept_whole(folder: Path) -> None:
    """As trainer=zero3_nodes has it: fp32 masters, gradients exchanged meanwhile."""
    assert together(folder, "nodes") == together(folder, "whole_nodes")
    assert len(together(folder, "nodes")) == BATCHES
    assert model(folder / "nodes") == model(folder / "whole_nodes")
    assert together(folder, "nodes") != together(folder, "same")


def test_another_zero_stage_takes_it_up(folder: Path) -> None:
    assert together(folder, "other") == pytest.approx(together(folder, "whole"), abs=1e-5)
    assert furthest(folder / "other", folder / "whole") < 1e-5


def test_one_process_takes_up_what_two_began(folder: Path) -> None:
    whole, back = alone(folder, "whole"), alone(folder, "back")
    assert len(whole) == BATCHES and len(back) == BATCHES - 4 * CUT
    assert back == pytest.approx(whole[4 * CUT :], abs=1e-5)
    assert furthest(folder / "back", folder / "one") < 1e-4  # Adam turns rounding into steps


def test_two_take_up_what_one_process_began(folder: Path) -> None:
    whole = alone(folder, "whole")
    assert alone(folder, "from_one") == whole[: 4 * CUT]
    assert together(folder, "from_one") == pytest.approx(whole[4 * CUT :], abs=1e-5)


def test_an_adapter_goes_from_two_ranks_to_one_and_back(folder: Path) -> None:
    whole = alone(folder, "lora")
    assert together(folder, "lora_back") == pytest.approx(whole[: 4 * CUT], abs=1e-5)
    for found in (alone(folder, "lora_back"), together(folder, "lora_on")):
        assert found == pytest.approx(whole[4 * CUT :], abs=1e-5)
    for name in ("lora_back", "lora_on"):
        assert furthest(folder / name, folder / "lora") < 1e-4
        states = saved_states(folder / name / "checkpoints")
        assert sorted(p.name for p in (folder / name / "adapter").iterdir()) and states


def test_a_gradient_that_is_no_number_stops_two_ranks_with_their_batches(folder: Path) -> None:
    for rank in (0, 1):
        told = json.loads((folder / f"told.{rank}.json").read_text())["nan"]
        place = f"at step 2 in batch {8 + rank}, {10 + rank}, saved in"
        assert re.match(rf"the gradient's norm is (nan|inf) {place}", told), told
    assert len(list((folder / "nan/dumps").rglob("rank_*.safetensors"))) == 2


def test_a_full_disk_of_one_rank_ends_both_and_loses_nothing(folder: Path) -> None:
    first, second = (
        json.loads((folder / f"told.{rank}.json").read_text())["full"] for rank in (0, 1)
    )
    assert "No space left on device; make room and run the same command again" in second
    told = ("shard_00001 was not written by its rank", "another rank cannot write its share")
    assert any(sentence in first for sentence in told), first
    last = saved_states(folder / "full/checkpoints")
    assert [step.name for step in last] == ["step_00000001"]
    read_state(last[0])
    assert list((folder / "full/checkpoints").iterdir()) == last


def test_each_rank_has_a_file_and_the_manifest_lists_all(folder: Path) -> None:
    state = saved_states(folder / "back/checkpoints")[0]
    verify_manifest(state)
    assert sorted(p.name for p in state.glob("shard_*")) == [
        "shard_00000.safetensors",
        "shard_00001.safetensors",
    ]
    listed = read_json(state / "shards.json")
    assert len(listed) == 2 * 9 + 2 and all(len(known) <= 2 for known in listed.values())
    tensors = load_tensors(state / "shard_00001.safetensors")
    assert tensors and all(t.dim() == 1 and t.numel() for t in tensors.values())
    for name in ("shard_00000.safetensors", "shard_00001.safetensors", "shards.json"):
        whole = (state / name).read_bytes()
        rng = random.Random(name)
        for _ in range(20):
            data = bytearray(whole)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            (state / name).write_bytes(data)
            with pytest.raises(UsageError, match=f"{name} is damaged"):
                read_state(state)
        (state / name).write_bytes(whole)
    read_state(state)


# ---- whole copies beside shards


def test_a_plain_optimizer_reads_as_shards_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    names = [["0.weight", "1.weight"], ["0.bias", "1.bias"]]
    parameters = dict(net.named_parameters())
    first, second = ([parameters[name] for name in group] for group in names)
    optimizer = torch.optim.AdamW([{"params": first, "lr": 0.1}, {"params": second, "lr": 0.2}])
    for _ in range(3):
        net(torch.rand(2, 3)).sum().backward()
        optimizer.step()
    state = {
        "state_dict": net.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "optimizer_names": names,
    }
    plain = WholeCopies(state=state)
    assert plain.about["keys"] == ["exp_avg", "exp_avg_sq", MASTER]
    assert all(tensor.equal(parameters[name]) for name, tensor in unsharded(plain.about, plain))
    back = optimizer_state(plain.about, plain)
    assert back["param_groups"] == optimizer.state_dict()["param_groups"]
    for number, moments in optimizer.state_dict()["state"].items():
        assert moments.keys() == back["state"][number].keys()
        assert all(moments[k].equal(back["state"][number][k]) for k in moments)


def test_each_rank_reads_its_own_file_once_and_all_fall_back_together(folder: Path) -> None:
    common = ["shards.json", "state.json", "state.safetensors"]
    for rank in (0, 1):
        told = json.loads((folder / f"told.{rank}.json").read_text())["fallen_back"]
        shard = f"shard_{rank:05d}.safetensors"
        files = sorted([*common, shard])
        assert told == {"step": CUT, "read": {"step_00000009": files, "step_00000003": files}}
    assert sorted(p.name for p in (folder / "spoilt").iterdir()) == [
        "damaged_step_00000009",
        "step_00000003",
    ]


def test_a_plain_run_needs_no_shards(folder: Path) -> None:
    state = StateFiles(keep=1).load_checkpoint(folder / "back/checkpoints")
    assert "sharded" not in state and state["state_dict"]
