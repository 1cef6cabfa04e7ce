"""A released Step-1 backbone, from a folder or from its tensors alone.

Every size is read from the tensors and checked against config.json; no code of the folder is run.
Letters: V table rows, W width, I inner width, H heads, G key/value heads, D head width.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from aqaa.backbone.shards import read_tensors, tensor_shapes
from aqaa.backbone.step1 import Step1Config, Step1ForCausalLM
from aqaa.errors import UsageError
from aqaa.release.strict import State, count, fill, shape_of
from aqaa.storage import read_json

_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LAYER = "model.layers.0."
_WHAT = "a Step-1 backbone"
# StepLaw's small models are dense and still carry the name of a mixture of experts.
_CLASSES = {"Step1ForCausalLM", "Step1MoEForCausalLM"}
_TOLD = {"max_seq_len", "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id",
         "pad_token_id"}  # fmt: skip


def backbone_from_state(
    state: State,
    *,
    heads: int,
    groups: int,
    ignore: Collection[str] = (),
    **told: Any,
) -> Step1ForCausalLM:
    """Step-1 around copies of released tensors, in float32 and evaluation mode.

    The head is tied to the table where ``state`` has no ``lm_head.weight``.

    Args:
        state: names to tensors; the table (V, W) and the rest, as the releases name them.
        heads: H, which no shape tells.
        groups: G; keys and values must be (G D, W).
        ignore: prefixes of tensors that are there and not wanted, a vision tower's for one.
        told: further settings of :class:`Step1Config` that no shape tells.

    Raises:
        UsageError: a tensor is missing, unknown, misshapen or not finite; heads that do not fit.
    """
    rows, width = shape_of(state, _TABLE, _WHAT)
    tied = _HEAD not in state
    try:
        config = Step1Config(
            vocab_size=rows,
            hidden_size=width,
            intermediate_size=shape_of(state, _LAYER + "mlp.gate_proj.weight", _WHAT)[0],
            num_hidden_layers=count(state, "model.layers"),
            num_attention_heads=heads,
            num_attention_groups=groups,
            tie_word_embeddings=tied,
            **told,
        )
    except ValueError as error:
        raise UsageError(f"these heads do not fit the tensors: {error}") from None
    whole = {**state, _HEAD: state[_TABLE]} if tied else state
    model = fill(lambda: Step1ForCausalLM(config), whole, what=_WHAT, ignore=ignore)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def load_backbone(folder: str | Path, *, ignore: Collection[str] = ()) -> Step1ForCausalLM:
    """A Step-1-family folder of config.json and safetensors, one file or shards with an index.

    Args:
        folder: as it was released.
        ignore: prefixes of tensors that are there and not wanted.

    Raises:
        UsageError: it is another family's, incomplete or damaged, or its parts contradict.
    """
    _refuse_foreign(Path(folder))
    return _from_folder(Path(folder), dict(read_tensors(folder)), ignore)


def inspect_backbone(folder: str | Path, *, ignore: Collection[str] = ()) -> Step1ForCausalLM:
    """The same with tensors that have no numbers: everything is checked but those.

    Raises:
        UsageError: as :func:`load_backbone`.
    """
    _refuse_foreign(Path(folder))
    state = {name: torch.empty(shape, device="meta") for name, shape in tensor_shapes(folder)}
    return _from_folder(Path(folder), state, ignore)


def _from_folder(folder: Path, state: State, ignore: Collection[str]) -> Step1ForCausalLM:
    """Tensors and the config.json of their folder, held against each other."""
    config = read_json(folder / "config.json")
    try:
        heads, groups = int(config["num_attention_heads"]), int(config["num_attention_groups"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder / 'config.json'} does not say how many heads: {error}") from None
    told = {name: config[name] for name in _TOLD & config.keys()}
    model = backbone_from_state(state, heads=heads, groups=groups, ignore=ignore, **told)
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
        found = getattr(model.config, name)
        if config.get(name, found) != found:
            raise UsageError(
                f"{folder / 'config.json'} says {name}={config[name]}, its tensors say {found}"
            )
    return model


def _refuse_foreign(folder: Path) -> None:
    """Name a folder that is of another family."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UsageError(f"{folder / 'config.json'} holds no settings of a model")
    kind, classes = config.get("model_type"), set(config.get("architectures") or ())
    if kind == "step1" and classes <= _CLASSES:
        return
    named = ", ".join(sorted(map(str, classes))) or kind or "nothing"
    other = ""
    if "step_audio_2" in str(kind) or any("StepAudio2" in str(name) for name in classes):
        other = ", a Qwen2.5 model with a continuous encoder (Step-Audio 2 and R1)"
    raise UsageError(f"{folder} is of {named}{other}, not a Step-1 backbone")
