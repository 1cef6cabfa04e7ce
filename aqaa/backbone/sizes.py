"""Names, shapes and number of a model's parameters, without its memory."""

import copy
from typing import Any

import torch

from aqaa.backbone.step1 import AutoModelForCausalLM


def empty_model(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The causal language model of a transformers config, its tensors on the meta device.

    Args:
        config: of transformers; it is not changed.
        dtype: of the tensors.

    Raises:
        ValueError: transformers has no causal language model of this kind.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    model.tie_weights()
    return model


def shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by name, in the model's order; tied ones once."""
    return {k: tuple(p.shape) for k, p in empty_model(config).named_parameters()}


def parameters(config: Any) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(p.numel() for p in empty_model(config).parameters())
