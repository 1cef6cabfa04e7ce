"""Step-1, the decoder of Step-Audio (paper section 2.2), with the released tensor names.

RMSNorm, grouped keys and values, SwiGLU, no biases, square-root ALiBi instead of rotary positions.
Letters: B sequences, T ids, W width, H heads, G key/value heads, V table rows.
The tensor names equal Llama's; loaded into a Llama class they give garbage without an error.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqaa.audio import torchaudio_shim
from aqaa.backbone.attention import Backend, attend
from aqaa.backbone.reach import Reach

torchaudio_shim.ensure()  # transformers imports torchaudio where it is installed
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM  # noqa: E402
from transformers.cache_utils import Cache, DynamicCache  # noqa: E402
from transformers.configuration_utils import PretrainedConfig  # noqa: E402
from transformers.generation.utils import GenerationMixin  # noqa: E402
from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: E402
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast  # noqa: E402
from transformers.modeling_utils import PreTrainedModel  # noqa: E402


class Step1Config(PretrainedConfig):
    """Sizes of a Step-1 decoder, keys as in the released config.json."""

    model_type = "step1"
    attribute_map = {"max_position_embeddings": "max_seq_len"}

    def __init__(
        self,
        *,
        vocab_size: int = 74752,
        hidden_size: int = 3072,
        intermediate_size: int = 8192,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 48,
        num_attention_groups: int = 4,
        max_seq_len: int = 32768,
        rms_norm_eps: float = 1e-5,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        if num_attention_heads % num_attention_groups:
            raise ValueError(
                f"{num_attention_heads} heads cannot be shared by {num_attention_groups} groups"
            )
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"width {hidden_size} is not a multiple of {num_attention_heads} heads"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_attention_groups = num_attention_groups
        self.max_seq_len = max_seq_len
        self.rms_norm_eps = rms_norm_eps
        specials = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
        tied = {"tie_word_embeddings": tie_word_embeddings}
        super().__init__(**{**specials, **tied, **kwargs})


class RMSNorm(nn.Module):
    """Mean square in fp32, scale in the activation's dtype (as Step-1, unlike Llama)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        if x.dtype == torch.float32:  # one fused kernel where the two definitions agree
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return x * scale.to(x.dtype) * self.weight


class Step1Attention(nn.Module):
    """Causal self-attention with grouped keys and values."""

    def __init__(self, config: Step1Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.backend: Backend | None = None
        self.head_width = config.hidden_size // config.num_attention_heads
        shared = self.head_width * config.num_attention_groups
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, reach: Reach, cache: Cache | None) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        heard = attend(q, k, v, reach=reach, backend=self.backend)
        return self.o_proj(heard.transpose(1, 2).flatten(2))


class Step1MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Step1Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Step1Layer(GradientCheckpointingLayer):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: Step1Config, layer: int) -> None:
        super().__init__()
        self.self_attn = Step1Attention(config, layer)
        self.mlp = Step1MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, reach: Reach, past_key_values: Cache | None = None
    ) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        x = x + self.self_attn(self.input_layernorm(x), reach, past_key_values)
        return x + self.mlp(self.post_attention_layernorm(x))


class Step1PreTrainedModel(PreTrainedModel):
    """What transformers needs to know to save and load a Step-1."""

    config_class = Step1Config
    base_model_prefix = "model"
    _no_split_modules = ["Step1Layer"]
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: weights always come from a folder (:mod:`aqaa.backbone.initial`)."""


class Step1Model(Step1PreTrainedModel):
    """Ids to hidden states."""

    def __init__(self, config: Step1Config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Step1Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def use_attention(self, backend: Backend | None) -> None:
        """Choose a back-end of :func:`aqaa.backbone.attention.attend`; None chooses by device."""
        for layer in self.layers:
            layer.self_attn.backend = backend  # type: ignore[union-attr]

    def get_input_embeddings(self) -> nn.Module:
        """The embedding table."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding table."""
        assert isinstance(value, nn.Embedding)
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        forks: Tensor | None = None,
        **_: object,
    ) -> BaseModelOutputWithPast:
        """(B, T) ids, after those in the cache, to (B, T, W).

        Args:
            input_ids: (B, T).
            attention_mask: (B, cached + T), 0 where a row is padded on the left or the right.
                Needed for padding on the left; what is on the right is never looked at.
            position_ids: (B, T) place inside its document, 0 where one begins. Documents of a row
                do not see each other.
            past_key_values: keys and values of earlier ids.
            use_cache: return them with these ids' added.
            forks: (B, 2) places where two branches of a row begin; see
                :mod:`aqaa.backbone.fork`.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        reach = Reach.of(
            input_ids,
            cached=cached,
            attention_mask=attention_mask,
            position_ids=position_ids,
            forks=forks,
        )
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, reach, past_key_values=past_key_values)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(x), past_key_values=past_key_values
        )


class Step1ForCausalLM(Step1PreTrainedModel, GenerationMixin):
    """Step-1 with its output head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Step1Config) -> None:
        super().__init__(config)
        self.model = Step1Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The output head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the output head."""
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **_: object,
    ) -> CausalLMOutputWithPast:
        """(B, T) ids to (B, T, V) logits, or those of the last ``logits_to_keep`` ids.

        ``labels`` (B, T) with -100 where no loss is wanted; the rest as of :class:`Step1Model`.
        """
        out = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=out.past_key_values
        )


AutoConfig.register("step1", Step1Config)
AutoModel.register(Step1Config, Step1Model)
AutoModelForCausalLM.register(Step1Config, Step1ForCausalLM)
