"""The stages of the paper's presets, run once at 130B: real code, no weights, one of 128 ranks.

Everything lives on the meta device. What a stage asks of values it gets the costliest answer to:
every position carries loss, every test of a value says no.
"""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed
from torch.fx.experimental import _config as shapes
from torch.utils._python_dispatch import TorchDispatchMode

from aqaa.backbone.loading import Backbone
from aqaa.backbone.shape import build_meta, step1_config
from aqaa.data.collate import TokenBatch
from aqaa.data.preferences import PreferenceBatch
from aqaa.runtime.compose import bind_targets, compose
from aqaa.vocabulary import Vocabulary
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
    known = {"task": "aqta", "pairs": [0], "input_ids": ids, "targets": ids, "slots": ids,
             "keep": ids, "position_ids": ids, "sources": ids}  # fmt: skip
    kind = PreferenceBatch if verb == "dpo" else TokenBatch
    return kind(**{name: known[name] for name in kind._fields if name in known})


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
    monkeypatch.setattr(dpo.Dpo, "_reference_scores", lambda *a: torch.zeros(1, 2, device="meta"))
    monkeypatch.setattr(type(stage), "_log", lambda *a, **k: None, raising=False)
    monkeypatch.setattr(type(stage), "log_dict", lambda *a, **k: None)
    source = SimpleNamespace(bind=lambda ids: None, rows=[0])
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
