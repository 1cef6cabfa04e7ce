"""The optimizer with its warm-up and decay, the same for every stage."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from aqaa.backbone.loading import shape_of

# Tables by the names transformers gives them; a table shared by both counts as the embedding.
_TABLES = {"embed_tokens.weight": "embedding", "lm_head.weight": "head"}


@dataclass(frozen=True)
class OptimizerSettings:
    """What an optimizer needs besides the parameters.

    Rows added to a table for a new vocabulary have no rate of their own: Adam divides a scaled
    gradient by its own size, so scaling rows of one parameter would change nothing.

    Args:
        lr: peak learning rate.
        algorithm: ``adamw``, or ``sgd`` without momentum, whose step shows the size of a gradient.
        warmup_steps: linear rise from lr / warmup_steps.
        schedule: ``cosine`` to ``final_ratio * lr`` at the last step, ``constant``, or ``wsd``:
            constant, then linearly to ``final_ratio * lr`` in the last ``decay_share`` of steps.
        final_ratio: where the decay ends.
        decay_share: of the steps, the decay of ``wsd``.
        weight_decay: of matrices; norms, biases and scales have none.
        betas: of Adam.
        embedding_lr_ratio: learning rate of the embedding over ``lr`` (paper: 5 in the first two
            stages of pre-training, for the head too).
        head_lr_ratio: of the output head, where it is a table of its own (None: as the embedding).
    """

    lr: float
    algorithm: Literal["adamw", "sgd"] = "adamw"
    warmup_steps: int = 50
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    final_ratio: float = 0.01
    decay_share: float = 0.1
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    embedding_lr_ratio: float = 1.0
    head_lr_ratio: float | None = None

    def factor(self, step: int, steps: int) -> float:
        """Learning rate at ``step`` of ``steps``, counted from zero, over ``lr``."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "constant":
            return warm
        if self.schedule == "wsd":
            decay_steps = max(1, round(self.decay_share * steps))
            left = max(0.0, min(1.0, (steps - 1 - step) / decay_steps))
            return warm * (self.final_ratio + (1 - self.final_ratio) * left)
        place = min(1.0, step / max(1, steps - 1))
        cosine = 0.5 + 0.5 * math.cos(math.pi * place)
        return warm * (self.final_ratio + (1 - self.final_ratio) * cosine)

    def build(self, network: nn.Module, steps: int) -> OptimizerLRSchedulerConfig:
        """Optimizer and scheduler in the shape Lightning's configure_optimizers returns."""
        ratios = {
            "backbone": 1.0,
            "embedding": self.embedding_lr_ratio,
            "head": self.embedding_lr_ratio if self.head_lr_ratio is None else self.head_lr_ratio,
        }
        groups = [
            {
                "name": name if decays else f"{name}, no decay",
                "params": members,
                "weight_decay": self.weight_decay if decays else 0.0,
                "lr": self.lr * ratios[name],
            }
            for (name, decays), members in _sorted(network).items()
        ]
        optimizer: torch.optim.Optimizer
        if self.algorithm == "sgd":
            optimizer = torch.optim.SGD(groups, lr=self.lr)
        else:
            betas = (self.betas[0], self.betas[1])
            optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=betas, fused=True)
            # A fused step would divide by a loss scale itself, so Lightning refuses to clip before
            # it in mixed precision. Without this mark the scale is taken out first; bf16 has none.
            optimizer._step_supports_amp_scaling = False
        scheduler = LambdaLR(optimizer, lambda step: self.factor(step, steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _sorted(network: nn.Module) -> dict[tuple[str, bool], list[nn.Parameter]]:
    """Trained parameters by (named group, whether they decay), in the order of the network."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    owners = dict(network.named_modules())
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            path, _, leaf = name.rpartition(".")
            group = next((g for end, g in _TABLES.items() if name.endswith(end)), "backbone")
            key = (group, _decays(owners[path], leaf, parameter))
            groups.setdefault(key, []).append(parameter)
    return groups


def _decays(owner: nn.Module, leaf: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for this parameter: a matrix, of no norm, and no bias.

    The shape is that of the whole parameter; a sharded one looks like a vector of nothing.
    """
    norm = "norm" in type(owner).__name__.lower()
    return len(shape_of(parameter)) > 1 and not norm and "bias" not in leaf
