"""The sizes of a backbone, read off the meta device: no weight is ever made.

Any causal LM of transformers is measured the same way: the model is built without storage, one
layer and two layers of it are run, and what autograd would keep is counted; the difference is what
a layer costs, whatever is in it. Letters: B sequences, T ids, H heads, D head width, V table rows.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from aqaa.backbone.sizes import empty_model
from aqaa.errors import UsageError

_TRACE_TOKENS = 64


@dataclass(frozen=True)
class Part:
    """Parameters of a model or of one layer, and bytes it keeps a token for the way back."""

    parameters: int
    trainable: int
    saved_bytes: int
    largest: int

    def times(self, count: int, more: "Part") -> "Part":
        """``more`` and so many of this one; the largest parameter stays the largest."""
        return Part(
            more.parameters + count * self.parameters,
            more.trainable + count * self.trainable,
            more.saved_bytes + count * self.saved_bytes,
            max(more.largest, self.largest),
        )


@dataclass(frozen=True)
class Shape:
    """What planning needs to know of a backbone.

    ``whole`` and ``layer`` count parameters and kept bytes a token (at ``dtype``); ``table`` is V
    times the width; ``matmul`` counts the parameters a token is multiplied with (no embedding).
    """

    whole: Part
    layer: Part
    layers: int
    width: int
    attention_width: int
    table_rows: int
    table: int
    tied: bool
    tensors: int

    @property
    def matmul(self) -> int:
        """Parameters a token is multiplied with: all but an untied embedding."""
        return self.whole.parameters - (0 if self.tied else self.table)


def read_config(folder: str | Path) -> Any:
    """The transformers config of a folder (its ``config.json``); no code of the folder is run."""
    from transformers import AutoConfig

    _prepare()
    if not (Path(folder) / "config.json").is_file():
        raise UsageError(f"{folder} holds no config.json: give the folder of a causal LM")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{folder}/config.json cannot be used: {error}") from None


def step1_config(sizes: Mapping[str, Any], *, table_rows: int) -> Any:
    """The config of a Step-1 of these sizes (``conf/backbone``) with so many table rows."""
    _prepare()
    from aqaa.backbone.step1 import Step1Config

    return Step1Config(**{"vocab_size": table_rows, **sizes})


def shape_of(
    config: Any, *, dtype: torch.dtype = torch.bfloat16, adapter: Mapping[str, Any] | None = None
) -> Shape:
    """Measure a causal LM on the meta device.

    Args:
        config: a transformers config.
        dtype: of weights and activations; kept bytes are counted in it.
        adapter: settings of a LoRA adapter (``rank``; ``targets``, names or ``all-linear``);
            None trains every parameter.

    Raises:
        UsageError: the config is no causal LM, or the adapter fits none of its layers.
    """
    layers = config.num_hidden_layers
    one, two = (_part(build_meta(_with_layers(config, n), dtype, adapter)) for n in (1, 2))
    layer = one.times(-1, two)
    whole = layer.times(layers - 1, one)
    model = build_meta(config, dtype, None)
    counted = sum(p.numel() for p in model.parameters())
    if adapter is None and counted != whole.parameters:
        raise UsageError(
            f"the layers of {type(config).__name__} differ from one another "
            f"({counted} parameters, {whole.parameters} if they were alike): it cannot be planned"
        )
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(
        whole=whole,
        layer=layer,
        layers=layers,
        width=config.hidden_size,
        attention_width=heads * head_width,
        table_rows=table.shape[0],
        table=table.numel(),
        tied=head is table,
        tensors=sum(1 for _ in model.parameters()),
    )


def _prepare() -> None:
    from aqaa.audio.torchaudio_shim import ensure

    ensure()
    import aqaa.backbone.step1  # noqa: F401  registers Step-1 with transformers


def _with_layers(config: Any, layers: int) -> Any:
    small = copy.deepcopy(config)
    small.num_hidden_layers = layers
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:layers]
    return small


def build_meta(config: Any, dtype: torch.dtype, adapter: Mapping[str, Any] | None) -> Any:
    """A causal LM without storage, ready to train, with an adapter around it if one is given."""
    try:
        model = empty_model(config, dtype)
    except ValueError as error:
        raise UsageError(f"{type(config).__name__} is no causal LM: {error}") from None
    return model.train() if adapter is None else _adapted(model, adapter).train()


def _adapted(model: Any, adapter: Mapping[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = adapter["targets"]
    try:
        settings = LoraConfig(r=adapter["rank"], target_modules=targets, task_type=_task(model))
        wrapped = get_peft_model(model, settings, autocast_adapter_dtype=False)
        return wrapped.base_model.model
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"adapter.targets={targets} does not fit: {reason}") from None


def _task(model: Any) -> str | None:
    """PEFT leaves the head out for this kind of model; it would wrap a method some do not have."""
    return "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None


def _part(model: Any) -> Part:
    parameters = list(model.parameters())
    return Part(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        saved_bytes(model.base_model) // _TRACE_TOKENS,
        max(p.numel() for p in parameters),
    )


def saved_bytes(decoder: Any, tokens: int = _TRACE_TOKENS) -> int:
    """Bytes autograd keeps of one row of ``tokens`` ids, the parameters themselves left out."""
    weights = {p.untyped_storage()._cdata for p in decoder.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = tensor  # held, so that no other storage gets its number
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    if hasattr(decoder, "enable_input_require_grads"):
        decoder.enable_input_require_grads()  # a frozen embedding would cut the graph
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _FusedAttention():
        decoder(input_ids=ids, use_cache=False, **_mask(decoder, tokens))
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def _mask(decoder: Any, tokens: int) -> dict[str, Tensor]:
    """A ready mask (1, 1, T, T), or transformers would look into values that are not there."""
    if decoder.config.model_type == "step1":
        return {}
    return {"attention_mask": torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device="meta")}


class _FusedAttention(TorchFunctionMode):
    """Lets attention keep what a fused kernel keeps; the meta device would keep all scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Fused.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Fused(torch.autograd.Function):
    """Keeps queries, keys, values, output and one number a row and head; computes nothing."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, T, D) each -> (B, H, T, D), laid out (B, T, H, D) as the kernels do."""
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Never asked for: what a forward pass keeps is all that is counted."""
        raise AssertionError("no gradient is taken where bytes are counted")
