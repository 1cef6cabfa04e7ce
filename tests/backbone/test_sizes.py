"""The size presets, each against a formula of its own, on the meta device."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from aqaa.backbone.sizes import empty_model, parameters, shapes
from aqaa.backbone.step1 import Step1Config

CONF = Path(__file__).resolve().parents[2] / "conf" / "backbone"
ROWS = 74752  # 65,536 text ids, 5,120 audio ids, 4,096 spare rows


def config(name: str) -> Step1Config:
    settings = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return Step1Config(vocab_size=ROWS, **settings)


def released(sizes: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the public weights, from the sizes alone."""
    h, inner = sizes.hidden_size, sizes.intermediate_size
    shared = h // sizes.num_attention_heads * sizes.num_attention_groups
    wanted: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (ROWS, h)}
    for n in range(sizes.num_hidden_layers):
        layer = f"model.layers.{n}."
        for name in ("q_proj", "o_proj"):
            wanted[f"{layer}self_attn.{name}.weight"] = (h, h)
        for name in ("k_proj", "v_proj"):
            wanted[f"{layer}self_attn.{name}.weight"] = (shared, h)
        for name in ("gate_proj", "up_proj"):
            wanted[f"{layer}mlp.{name}.weight"] = (inner, h)
        wanted[f"{layer}mlp.down_proj.weight"] = (h, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            wanted[f"{layer}{name}.weight"] = (h,)
    wanted["model.norm.weight"] = (h,)
    if not sizes.tie_word_embeddings:
        wanted["lm_head.weight"] = (ROWS, h)
    return wanted


@pytest.mark.parametrize(
    ("name", "tensors", "count"),
    [
        ("step1_tiny", 38, 10_257_536),
        ("step1_200m", 218, 208_442_112),
        ("step1_3b", 291, 3_529_706_496),
        ("step1_130b", 795, 131_946_590_208),
    ],
)
def test_names_shapes_and_number(name: str, tensors: int, count: int) -> None:
    sizes = config(name)
    found, wanted = shapes(sizes), released(sizes)
    assert found == wanted
    assert len(found) == tensors
    total = 0
    for shape in wanted.values():
        product = 1
        for side in shape:
            product *= side
        total += product
    assert parameters(sizes) == total == count


def test_every_preset_is_counted_here() -> None:
    assert {p.stem for p in CONF.glob("*.yaml")} == {
        "step1_tiny",
        "step1_200m",
        "step1_3b",
        "step1_130b",
    }


def test_nothing_is_held() -> None:
    assert all(p.is_meta for p in empty_model(config("step1_130b")).parameters())


def test_any_causal_model_is_counted() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings = Qwen3Config(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(settings)
    assert parameters(settings) == sum(p.numel() for p in model.parameters())
    attention = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 2 * 4
    assert parameters(settings) == 50 * 8 + attention + 3 * 8 * 12 + 3 * 8
