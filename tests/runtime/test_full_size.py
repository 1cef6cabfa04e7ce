"""The paper's presets at their full size: 130B parameters, 128 ranks, neither of which are here.

A stage runs once on the meta device: real code, no weights. What it asks of values it gets the
costliest answer to: every position carries loss, every test of a value says no.

What depends on the number of ranks is asked of 128: DeepSpeed's own engine, the shards we save, the
order of the batches, the plan.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import distributed
from torch.fx.experimental import _config as shapes
from torch.utils._python_dispatch import TorchDispatchMode

from aqaa.backbone.loading import Backbone
from aqaa.backbone.shape import build_meta, step1_config
from aqaa.data.collate import TokenBatch
from aqaa.data.module import DataModule
from aqaa.data.preferences import PreferenceBatch
from aqaa.runtime import checkpoint
from aqaa.runtime.checkpoint import StateFiles, read_state
from aqaa.runtime.compose import bind_targets, compose
from aqaa.runtime.planner_memory import Placement, memory
from aqaa.runtime.shard_files import shard_name
from aqaa.states import SHARDED
from aqaa.storage import read_json, sha256_file
from aqaa.vocabulary import Vocabulary
from tests.conftest import ROOT
from tests.runtime.many_ranks import network
from tests.runtime.test_planner import PRESETS, yaml

N, WIDTH, LAYERS = 131_946_590_208, 12288, 88
RANKS, TOKENS, TABLE_ROWS = 128, 16, 74752


class CostliestAnswer(TorchDispatchMode):
    """Says no, or zero, to questions about values that are not there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return False if args[0].dtype == torch.bool else 0
        if func is torch.ops.aten.bincount.default and args[0].is_meta:
            counts = torch.zeros(args[2], dtype=torch.long, device="cpu")
            counts[-1] = len(args[0])  # all in one slot
            return counts
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def group_of_128() -> Iterator[None]:
    """This process is rank 5 of 128; collectives return at once."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=5, world_size=RANKS, store=FakeStore())
    yield
    distributed.destroy_process_group()


@pytest.fixture
def backbone() -> Backbone:
    """The 130B backbone without a byte of weights, and ids that fit its table."""
    from tests.golden.make import ids

    config = step1_config(yaml("backbone/step1_130b"), table_rows=TABLE_ROWS)
    fitting = replace(ids(), vocabulary=Vocabulary(65536, table_rows=TABLE_ROWS))
    assert fitting.vocabulary.rows == TABLE_ROWS
    return Backbone(build_meta(config, torch.bfloat16, None), fitting)


def batch(verb: str) -> Any:
    """Two rows of a batch on the meta device."""
    ids = torch.zeros(2, TOKENS, dtype=torch.long, device="meta")
    if verb == "dpo":
        known = {"pairs": [0, 1], "input_ids": ids, "at": ids, "counted": TOKENS // 2}
        known |= dict.fromkeys(("targets", "slots", "answers", "kinds"), ids[0])
        known |= {"forks": ids[:, :2], "alike": torch.zeros(2, 4, device="meta")}
        return PreferenceBatch(**known)
    known = {"task": "aqta", "input_ids": ids, "targets": ids, "slots": ids,
             "position_ids": ids, "sources": ids}  # fmt: skip
    return TokenBatch(**known)


@pytest.mark.usefixtures("group_of_128")
@pytest.mark.parametrize(("verb", "preset"), PRESETS)
def test_the_stage_of_a_preset_runs_at_130b(
    verb: str, preset: str, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra.utils import instantiate

    from aqaa.stages import dpo, language

    cfg = compose(verb, [f"preset={preset}", "stage.activation_checkpointing=true"])
    bind_targets(cfg)
    stage = instantiate(cfg.stage, _convert_="all")
    assert int(cfg.trainer.num_nodes) * int(cfg.trainer.devices) == RANKS
    assert distributed.get_world_size() == RANKS
    for module in (dpo, language):
        monkeypatch.setattr(module, "load_backbone", lambda *a, **k: backbone)
    reference = torch.zeros(2, 2, 4, device="meta")
    monkeypatch.setattr(dpo.Dpo, "_reference_scores", lambda *a: reference)
    monkeypatch.setattr(type(stage), "_log", lambda *a, **k: None, raising=False)
    monkeypatch.setattr(type(stage), "log_dict", lambda *a, **k: None)
    keep = [True, False, False, False]
    source = SimpleNamespace(names=("toy",), bind=lambda ids: None, rows=[0], keep=keep)
    stage._trainer = SimpleNamespace(
        datamodule=SimpleNamespace(source=source),
        log_every_n_steps=1, accumulate_grad_batches=1, global_step=0,
    )  # fmt: skip
    stage._device = torch.device("meta")
    monkeypatch.setattr(type(stage), "trainer", property(lambda self: self._trainer))
    all_nonzero = shapes.patch(meta_nonzero_assume_all_nonzero=True)
    with CostliestAnswer(), all_nonzero, torch.device("meta"):
        stage.configure_model()
        loss = stage.training_step(batch(verb), 0)
        loss.backward()
    assert loss.shape == () and loss.is_meta
    gradients = {n: p.grad for n, p in stage.decoder.named_parameters()}
    assert sum(g.numel() for g in gradients.values() if g is not None) == N
    assert len(gradients) == 9 * LAYERS + 3


# ---- what depends on the number of ranks


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What DeepSpeed's engine holds on three of 128 ranks, under a preset's strategy."""
    path = tmp_path_factory.mktemp("engines") / "seen.json"
    words = ["-m", "tests.runtime.many_ranks", path, RANKS, 0, 5, RANKS - 1]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, cwd=ROOT,
        env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {int(rank): found for rank, found in json.loads(path.read_text()).items()}


def test_deepspeed_counts_the_batches_of_128_ranks(engines: dict[int, dict[str, Any]]) -> None:
    cfg = compose("sft", ["preset=paper/sft_1"])
    ranks = int(cfg.trainer.num_nodes) * int(cfg.trainer.devices)
    assert ranks == RANKS
    for found in engines.values():
        assert found["ranks"] == ranks
        assert found["batches"] == int(cfg.trainer.accumulate_grad_batches) * ranks


def test_a_shard_of_128_is_its_rank_s_stretch_of_every_parameter(
    engines: dict[int, dict[str, Any]],
) -> None:
    whole = {name: p.numel() for name, p in network().named_parameters()}
    for rank, found in engines.items():
        wanted = []
        for name, elements in whole.items():
            each = ceil(elements / RANKS)
            count = min(each, elements - rank * each)  # the last ranks hold padding alone
            wanted += [[name, rank * each, count]] if count > 0 else []
        assert found["pieces"] == wanted and found["equal"]
        assert found["keys"] == [f"fp32:{name}:{start}" for name, start, _ in wanted]
        assert found["kept_whole"] == sorted(n for n, elements in whole.items() if elements < 1000)


def test_the_plan_shares_as_deepspeed_does(
    engines: dict[int, dict[str, Any]], backbone: Backbone
) -> None:
    here = [p.numel() for p in network().parameters()]
    padded = sum(ceil(elements / RANKS) for elements in here)
    assert {found["flat"] for found in engines.values()} == {padded}
    for elements in (here, [p.numel() for p in backbone.model.parameters()]):
        shape: Any = SimpleNamespace(
            whole=SimpleNamespace(
                trainable=sum(elements), parameters=sum(elements), largest=max(elements),
                saved_bytes=0,
            ),
            layer=SimpleNamespace(saved_bytes=0), layers=1, width=1, table=1, table_rows=1,
        )  # fmt: skip
        place = Placement(stage=3, ranks=RANKS, weight_bytes=2, rows=1, row_tokens=1)
        planned = memory(shape, place)
        share = sum(ceil(count / RANKS) for count in elements)
        for bytes_each, found in ((12, planned.optimizer), (2, planned.weights)):
            assert 0 <= bytes_each * share - found <= bytes_each * len(elements)  # the padding


@pytest.mark.parametrize("before", [0, 8])
def test_128_ranks_take_the_batches_that_one_takes(before: int) -> None:
    """Each once, in one order; also where 8 ranks have taken the steps before."""
    accumulate, step = 4, 3
    taken: list[int] = []
    for rank in range(RANKS):
        data = DataModule(SimpleNamespace(batch=lambda n: n), accumulate=accumulate)
        place = {"world_size": RANKS, "global_rank": rank, "global_step": step}
        data.trainer = SimpleNamespace(**place)  # type: ignore[assignment]
        if before:
            data.load_state_dict({"step": step, "batches": step * accumulate * before})
        batches = iter(data.train_dataloader())
        mine = [next(batches) for _ in range(accumulate)]
        assert mine == [data.number(micro) for micro in range(accumulate)]
        taken += mine
    first = step * accumulate * (before or RANKS)
    assert sorted(taken) == [*range(first, first + accumulate * RANKS)]


@pytest.mark.usefixtures("group_of_128")
def test_a_state_of_128_shards_is_shared_by_its_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (checkpoint.rank(), checkpoint.ranks()) == (5, RANKS)
    each, names = 7, [shard_name(rank) for rank in range(RANKS)]
    writing, path = tmp_path / ".step_00000001.writing", tmp_path / "step_00000001"
    writing.mkdir()
    for rank, name in reversed([*enumerate(names)]):
        part = torch.arange(each * rank, each * (rank + 1))
        save_file({f"fp32:a:{each * rank}": part}, writing / name)
        told = {"sha256": sha256_file(writing / name), "holds": {"a": [each * rank, each]}}
        (writing / name).with_suffix(".json").write_text(json.dumps(told))
    monkeypatch.setattr(checkpoint, "rank", lambda: 0)  # the one that writes what all share
    monkeypatch.setattr(checkpoint, "from_first", lambda value: value)
    files = StateFiles(keep=1)
    files.save_checkpoint({SHARDED: {}}, path, storage_options={"fp32:a:0": torch.arange(each)})
    files.writer.wait()
    assert read_json(path / "shards.json") == {"a": [[0, 0, each, RANKS]]}
    read = checkpoint.read_hashed
    looked_at: list[str] = []

    def reads(place: Path, digest: str) -> torch.Tensor:
        looked_at.append(place.name)
        return read(place, digest)

    monkeypatch.setattr(checkpoint, "read_hashed", reads)
    _, found = read_state(path, [("a", 5 * each, each)])  # on as many ranks
    assert found is not None and looked_at[-1:] == names[5:6] and len(looked_at) == 4
    looked_at.clear()
    _, found = read_state(path, [("a", 16 * each, 3 * each + 1)])  # on fewer
    assert found is not None and looked_at[3:] == names[16:20]
    wanted = torch.arange(16 * each, 19 * each + 1)
    assert found.read("fp32", "a", 16 * each, 3 * each + 1).equal(wanted)
