"""What the strategy refuses, how it is set up, and adapters in shards."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aqaa.backbone.loading import load_backbone
from aqaa.errors import UsageError
from aqaa.runtime.compose import compose
from aqaa.runtime.strategy import ShardedStrategy, gather_of
from aqaa.storage import load_tensors
from tests.runtime.conftest import TwoRanks
from tests.runtime.two_ranks import LORA, changed

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "stage": 3,
    "offload": "none",
    "overlap": False,
    "reduce_bucket_elements": 10,
    "gather_bucket_elements": 20,
    "live_elements": 30,
    "persist_below_elements": 40,
}


def test_every_setting_reaches_the_engine() -> None:
    config = ShardedStrategy(**{**SETTINGS, "offload": "all"}).config
    zero = config["zero_optimization"]
    assert zero["stage"] == 3 and zero["overlap_comm"] is False
    assert (zero["reduce_bucket_size"], zero["allgather_bucket_size"]) == (10, 20)
    assert zero["stage3_max_live_parameters"] == 30
    assert zero["stage3_param_persistence_threshold"] == 40
    assert zero["offload_param"]["device"] == zero["offload_optimizer"]["device"] == "cpu"
    json.dumps(config)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ((), {"grad_accum_dtype": "fp32"}),
        (("trainer.strategy.stage=2",), {"grad_accum_dtype": "fp32"}),
        (("trainer.strategy.stage=1",), None),
        (("trainer.accumulate_grad_batches=1",), None),
    ],
)
def test_gradients_of_several_batches_are_summed_in_full(more: tuple, told: object) -> None:
    from hydra.utils import instantiate
    from lightning.pytorch.plugins.precision import DeepSpeedPrecision

    words = ["preset=paper/pretrain_1", "trainer.strategy.device=cpu", *more]
    trainer = compose("pretrain", words).trainer
    strategy = instantiate(trainer.strategy)
    strategy.precision_plugin = DeepSpeedPrecision(trainer.precision)
    strategy._lightning_module = SimpleNamespace(trainer=trainer)
    strategy._init_config_if_needed()
    assert strategy.config["bf16"]["enabled"]
    assert strategy.config.get("data_types") == told


def test_whole_parameters_cannot_be_offloaded() -> None:
    with pytest.raises(UsageError, match="stage=2 keeps parameters whole: offload=all needs"):
        ShardedStrategy(**{**SETTINGS, "stage": 2, "offload": "all"})


def test_a_small_network_is_sent_to_whole_copies() -> None:
    import lightning.pytorch as pl

    class Tokenizer(pl.LightningModule):
        pass

    strategy = ShardedStrategy(**SETTINGS)
    strategy._config_initialized = True
    strategy._lightning_module = Tokenizer()
    with pytest.raises(UsageError, match="tokenizer is a small network and trains on whole copies"):
        strategy.model_sharded_context().__enter__()


def test_half_precision_keeps_masters_and_positions_in_full(two_ranks: TwoRanks) -> None:
    for seen in two_ranks.seen("half"):
        assert seen["dtypes"] == ["torch.bfloat16"]
        assert seen["masters"] == ["torch.float32"]
        assert seen["sums"] == "torch.float32"  # of the gradients of a step's batches
        assert seen["buffers"] == ["torch.float32"]  # bf16-true would round the rotary angles
    full, half = two_ranks.losses("llama"), two_ranks.losses("half")
    assert half == pytest.approx(full, abs=0.02) and half != full


def test_a_new_adapter_adds_nothing_in_shards(two_ranks: TwoRanks) -> None:
    base, adapted = two_ranks.losses("zero3"), two_ranks.losses("lora")
    assert adapted[:4] == pytest.approx(base[:4], abs=1e-6)  # before the first step
    assert two_ranks.losses("lora") == pytest.approx(two_ranks.alone("lora")["losses"], abs=1e-5)
    for seen in two_ranks.seen("lora"):
        assert seen["here"] == 0 and seen["shards"] == seen["whole"] / 2


def test_inside_a_sharding_context_it_would_add_something(two_ranks: TwoRanks) -> None:
    for seen in two_ranks.seen("inside"):
        assert "was made inside a sharding context: B is not zero there" in seen["error"]


def test_an_adapter_is_saved_whole(two_ranks: TwoRanks) -> None:
    from peft import PeftModel

    assert [seen["naive"] for seen in two_ranks.seen("lora")] == [0, 0]  # PEFT would save nothing
    two_ranks.alone("lora")
    tensors = load_tensors(two_ranks.two / "lora/adapter/adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 7 and all(t.numel() for t in tensors.values())
    ids = torch.arange(9)[None]
    merged = load_backbone(two_ranks.two / "lora/model")
    base = load_backbone(two_ranks.two / "init")
    with torch.no_grad():
        wanted = merged.hidden(ids).last_hidden_state
        plain = base.hidden(ids).last_hidden_state
        adapted = PeftModel.from_pretrained(base.model, two_ranks.two / "lora/adapter")
        found = adapted.base_model.model.base_model(input_ids=ids).last_hidden_state
    assert (wanted - plain).abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert changed(two_ranks.one / "lora/model", two_ranks.two / "lora/model") < 1e-5
    assert LORA.rank == min(tensors[next(iter(tensors))].shape)


def test_one_process_keeps_its_own_parameters(tmp_path: Path) -> None:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    gather = gather_of(SingleDeviceStrategy("cpu"))
    with gather([torch.nn.Parameter(torch.zeros(3))]) as mine:
        assert mine
