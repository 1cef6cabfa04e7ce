"""A backbone folder of another family than Step-1: a Llama of seeded weights."""

from pathlib import Path

import torch

from aqaa.backbone.loading import Backbone, Ids


def write_llama(folder: Path, ids: Ids, *, width: int = 32, layers: int = 2) -> Path:
    """Write it with the given ids, its table as large as theirs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ids.vocabulary.rows,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    Backbone(LlamaForCausalLM(config), ids).save(folder)
    return folder
