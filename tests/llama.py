"""A backbone folder of another family than Step-1: a Llama or a Qwen of seeded weights."""

from pathlib import Path
from typing import Any

import torch

from aqaa.backbone.loading import Backbone, Ids


def write_llama(folder: Path, ids: Ids, *, width: int = 32, layers: int = 2) -> Path:
    """Write it with the given ids, its table as large as theirs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    Backbone(LlamaForCausalLM(LlamaConfig(**_sizes(ids, width, layers))), ids).save(folder)
    return folder


def write_qwen(folder: Path, ids: Ids, *, width: int = 32, layers: int = 2) -> Path:
    """The same of a Qwen, which norms its queries and keys and ties its table."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes = {**_sizes(ids, width, layers), "head_dim": width // 4, "tie_word_embeddings": True}
    Backbone(Qwen3ForCausalLM(Qwen3Config(**sizes)), ids).save(folder)
    return folder


def _sizes(ids: Ids, width: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": ids.vocabulary.rows,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
    }
