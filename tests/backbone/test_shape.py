"""Sizes read off the meta device equal those of real models and of real backward passes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from aqaa.backbone.shape import read_config, shape_of, step1_config
from aqaa.errors import UsageError

SMALL = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SMALL, num_hidden_layers=5, num_key_value_heads=2, vocab_size=300)
QWEN = Qwen3Config(
    **SMALL, num_hidden_layers=3, num_key_value_heads=2, head_dim=32, vocab_size=300,
    tie_word_embeddings=True,
)  # fmt: skip
STEP1 = step1_config(
    {**SMALL, "num_hidden_layers": 4, "num_attention_groups": 2}, table_rows=300
)


@pytest.mark.parametrize("config", [LLAMA, QWEN, STEP1], ids=lambda c: c.model_type)
def test_counts_equal_those_of_a_real_model(config: Any) -> None:
    model = AutoModelForCausalLM.from_config(config)
    found = shape_of(config)
    assert found.whole.parameters == sum(p.numel() for p in model.parameters())
    assert found.whole.trainable == found.whole.parameters
    assert found.whole.largest == max(p.numel() for p in model.parameters())
    layer = model.base_model.layers[0]
    assert found.layer.parameters == sum(p.numel() for p in layer.parameters())
    assert (found.table_rows, found.table) == (300, 300 * 64)
    assert found.matmul == found.whole.parameters - (0 if found.tied else found.table)


@pytest.mark.parametrize("config", [LLAMA, STEP1], ids=lambda c: c.model_type)
def test_what_is_kept_for_the_way_back_is_what_a_real_pass_keeps(config: Any) -> None:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    held = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model.base_model(input_ids=torch.zeros(1, 64, dtype=torch.long), use_cache=False)
    found = 64 * shape_of(config, dtype=torch.float32).whole.saved_bytes
    assert found == pytest.approx(sum(kept.values()), rel=0.06)


def test_the_sizes_of_step_audio() -> None:
    tts = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
           "num_attention_heads": 48, "num_attention_groups": 4}  # fmt: skip
    found = shape_of(step1_config(tts, table_rows=74752))
    assert (found.whole.parameters, found.tensors) == (3_529_706_496, 291)
    # By hand, bf16, one layer and token: nine vectors of the width, keys and values of the four
    # groups, four of the MLP's width, and what norms and attention keep in float32.
    by_hand = 2 * (9 * 3072 + 2 * 4 * 64 + 4 * 8192)
    assert found.layer.saved_bytes == pytest.approx(by_hand, rel=0.3)


def test_an_adapter_trains_its_own_weights_alone() -> None:
    adapter = {"rank": 8, "targets": ["q_proj", "v_proj"]}
    found = shape_of(STEP1, adapter=adapter)
    per_layer = 8 * (64 + 64) + 8 * (64 + 32)
    assert found.whole.trainable == 4 * per_layer and found.layer.trainable == per_layer
    assert found.whole.parameters == shape_of(STEP1).whole.parameters + 4 * per_layer
    linear = shape_of(STEP1, adapter={"rank": 8, "targets": "all-linear"})
    assert linear.whole.trainable > found.whole.trainable
    with pytest.raises(UsageError, match="nowhere"):
        shape_of(STEP1, adapter={"rank": 8, "targets": ["nowhere"]})


def test_nothing_is_allocated() -> None:
    model = torch.nn.Linear(2, 2, device="meta")
    assert not model.weight.untyped_storage().data_ptr()
    huge = {**SMALL, "hidden_size": 65536, "num_hidden_layers": 500}
    assert shape_of(step1_config(huge, table_rows=1 << 20)).whole.parameters > 1e12


def test_a_folder_is_read_and_anything_else_refused(tmp_path: Path) -> None:
    LLAMA.save_pretrained(tmp_path / "llama")
    assert shape_of(read_config(tmp_path / "llama")).whole == shape_of(LLAMA).whole
    with pytest.raises(UsageError, match="holds no config.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nothing_known"}')
    with pytest.raises(UsageError, match="cannot be used"):
        read_config(tmp_path)
