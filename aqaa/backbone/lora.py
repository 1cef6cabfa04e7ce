"""LoRA around a loaded backbone, by PEFT: a run leaves the adapter and a whole model.

``adapter/`` (adapter_model.safetensors, adapter_config.json) is PEFT's own layout: load it with
``peft.PeftModel.from_pretrained`` on the base, which the run's lineage names as its parent.
``model/`` is the base with the update added in, so that later stages take it like any other.
Letters: R rank, I inputs, O outputs of a linear layer.
"""

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqaa.backbone.loading import Backbone, is_sharded
from aqaa.errors import UsageError
from aqaa.storage import atomic_folder

_NAME = "default"  # what PEFT calls the only adapter


@dataclass(frozen=True)
class Lora:
    """What an adapter is made of.

    Args:
        rank: R, of the update.
        alpha: the update is scaled by alpha / R.
        dropout: of its input while training.
        targets: names of linear layers, or ``all-linear``: those of attention and MLP, without the
            output head.
        seed: with a layer's name it decides the random half; the other half starts at zero.
    """

    rank: int
    alpha: float
    dropout: float
    targets: str | list[str]
    seed: int

    def wrap(self, backbone: Backbone) -> Backbone:
        """Freeze a loaded backbone and put the adapter around its linear layers.

        Weights may be sharded, but no sharding context may be open: there B would not be zero.
        """
        from peft import LoraConfig, get_peft_model

        generates = hasattr(backbone.model, "prepare_inputs_for_generation")
        settings = LoraConfig(
            task_type="CAUSAL_LM" if generates else None,  # PEFT would wrap that method
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=self.targets if isinstance(self.targets, str) else list(self.targets),
        )
        try:
            peft = get_peft_model(backbone.model, settings)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"adapter.targets={self.targets} does not fit: {reason}") from error
        for name, parameter in backbone.model.named_parameters():
            if ".lora_" in name and is_sharded(parameter):
                raise ValueError(f"{name} was made inside a sharding context: B is not zero there")
            if ".lora_A." in name:
                _seeded(parameter, f"{self.seed}:{name}")
        return replace(backbone, adapter=Adapter(peft=peft, scale=self.alpha / self.rank))


@dataclass(frozen=True)
class Adapter:
    """An adapter in place: ``peft`` wraps the model whose layers it changed."""

    peft: Any
    scale: float

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write PEFT's folder from A and B, whole, by their names in the wrapped model."""
        mine = {f"base_model.model.{name}": t for name, t in state.items() if ".lora_" in name}
        for name, tensor in mine.items():
            if not tensor.numel():
                raise ValueError(f"{name} is empty: its shards were not gathered")
        with atomic_folder(folder) as temporary:
            self.peft.save_pretrained(temporary, state_dict=mine, save_embedding_layers=False)
            (temporary / "README.md").unlink()  # a form for somebody to fill in

    def merged(
        self, tensors: Iterable[tuple[str, Tensor]], adapter: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """The plain model's, one by one: each weight (O, I) plus scale * B (O, R) A (R, I).

        ``adapter`` holds A and B by their names, beside whatever else.
        """
        for name, tensor in tensors:
            layer, found, kind = name.partition(".base_layer.")
            if ".lora_" in name:
                continue
            if found and kind == "weight":
                a, b = (adapter[f"{layer}.lora_{half}.{_NAME}.weight"].float() for half in "AB")
                tensor = (tensor.float() + self.scale * (b @ a)).to(tensor.dtype)
            yield (f"{layer}.{kind}" if found else name), tensor


@torch.no_grad()
def _seeded(parameter: Tensor, name: str) -> None:
    """Fill A (R, I) as PEFT does, but from its name, whatever was drawn before."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    bound = 1 / math.sqrt(parameter.shape[1])
    drawn = torch.rand(parameter.shape, generator=generator)
    parameter.copy_((2 * drawn - 1) * bound)
