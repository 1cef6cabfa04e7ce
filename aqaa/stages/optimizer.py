"""AdamW with a warm-up and a decay, the same for every stage."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class OptimizerSettings:
    """What an optimizer needs besides the parameters.

    Args:
        lr: peak learning rate.
        warmup_steps: linear rise from lr / warmup_steps.
        schedule: ``cosine`` to ``final_ratio * lr`` at the last step, or ``constant``.
        final_ratio: where the cosine ends.
        weight_decay: of matrices; norms, biases and scales have none.
        betas: of Adam.
        embedding_lr_ratio: learning rate of embedding and head over ``lr`` (paper: 5 in the first
            two stages of pre-training).
    """

    lr: float
    warmup_steps: int = 50
    schedule: Literal["cosine", "constant"] = "cosine"
    final_ratio: float = 0.01
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    embedding_lr_ratio: float = 1.0

    def factor(self, step: int, steps: int) -> float:
        """Learning rate at ``step`` of ``steps``, counted from zero, over ``lr``."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "constant":
            return warm
        place = min(1.0, step / max(1, steps - 1))
        cosine = 0.5 + 0.5 * math.cos(math.pi * place)
        return warm * (self.final_ratio + (1 - self.final_ratio) * cosine)

    def build(
        self, parameters: Iterable[tuple[str, nn.Parameter]], steps: int
    ) -> OptimizerLRSchedulerConfig:
        """Optimizer and scheduler in the shape Lightning's configure_optimizers returns."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in parameters:
            if parameter.requires_grad:
                table = name.endswith(("embed_tokens.weight", "lm_head.weight"))
                groups.setdefault((parameter.dim() > 1, table), []).append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {
                    "params": members,
                    "weight_decay": self.weight_decay if decays else 0.0,
                    "lr": self.lr * (self.embedding_lr_ratio if table else 1.0),
                }
                for (decays, table), members in groups.items()
            ],
            lr=self.lr,
            betas=(self.betas[0], self.betas[1]),
            fused=True,
        )
        scheduler = LambdaLR(optimizer, lambda step: self.factor(step, steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
