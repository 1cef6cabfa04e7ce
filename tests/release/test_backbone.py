"""Released Step-1 weights: the same numbers out, and what does not fit refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aqaa.backbone.shards import write_tensors
from aqaa.backbone.step1 import Step1Config, Step1ForCausalLM
from aqaa.errors import UsageError
from aqaa.release import backbone_from_state, load_backbone

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_attention_groups": 2}  # fmt: skip
IDS = torch.arange(18).reshape(2, 9)


def model(tied: bool = False) -> Step1ForCausalLM:
    torch.manual_seed(0)
    made = Step1ForCausalLM(Step1Config(**SIZES, tie_word_embeddings=tied)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3)
    return made


def state(made: Step1ForCausalLM, tied: bool = False) -> dict[str, torch.Tensor]:
    return {k: v for k, v in made.state_dict().items() if not (tied and k == "lm_head.weight")}


def released(folder: Path, made: Step1ForCausalLM, tied: bool = False, **more: Any) -> Path:
    """A folder as it is published: shards, bf16 apart, and a config with keys we do not know."""
    folder.mkdir()
    write_tensors(folder, state(made, tied).items(), shard_bytes=4_000)
    config = {"model_type": "step1", "architectures": ["Step1ForCausalLM"], **SIZES,
              "max_seq_len": 128, "rms_norm_eps": 1e-5, "n_experts": 0, **more}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_step1.py").write_text("raise SystemExit('code of a release was run')\n")
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_and_its_tensors_give_the_same_numbers(tied: bool, tmp_path: Path) -> None:
    made = model(tied)
    loaded = load_backbone(released(tmp_path / "step1", made, tied))
    built = backbone_from_state(state(made, tied), heads=4, groups=2)
    with torch.no_grad():
        wanted = made(IDS).logits
        assert torch.equal(loaded(IDS).logits, wanted) and torch.equal(built(IDS).logits, wanted)
    assert (loaded.config.max_seq_len, loaded.config.tie_word_embeddings) == (128, tied)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied


def test_it_owns_its_numbers_in_float32() -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in state(model()).items()}
    built = backbone_from_state(tensors, heads=4, groups=2)
    assert {p.dtype for p in built.parameters()} == {torch.float32}
    before = built.model.norm.weight.clone()
    tensors["model.norm.weight"].zero_()
    assert torch.equal(built.model.norm.weight, before)


def test_a_dense_model_under_a_mixtures_name_is_read(tmp_path: Path) -> None:
    folder = released(tmp_path / "a", model(), architectures=["Step1MoEForCausalLM"])
    assert load_backbone(folder).config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_attention_groups": 4}, "k_proj.weight has the shape"),
        ({"num_attention_heads": 3}, "these heads do not fit"),
        ({"num_attention_heads": None}, "does not say how many heads"),
        ({"intermediate_size": 25}, "says intermediate_size=25, its tensors say 24"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "is of Qwen2ForCausalLM"),
        (
            {"model_type": "step_audio_2", "architectures": ["StepAudio2ForCausalLM"]},
            "Step-Audio 2 and R1",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        load_backbone(released(tmp_path / "a", model(), **change))
    assert "\n" not in str(caught.value)


def test_unknown_tensors_are_listed_and_ignored_only_by_name() -> None:
    tensors = {**state(model()), "vision_tower.conv.weight": torch.ones(2)}
    with pytest.raises(UsageError, match="has no place for 1 tensors: vision_tower.conv.weight"):
        backbone_from_state(tensors, heads=4, groups=2)
    built = backbone_from_state(tensors, heads=4, groups=2, ignore=["vision_"])
    assert built.config.vocab_size == 40
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(UsageError, match="lacks 1 tensors: model.layers.1.mlp.up_proj.weight"):
        backbone_from_state(tensors, heads=4, groups=2, ignore=["vision_"])
