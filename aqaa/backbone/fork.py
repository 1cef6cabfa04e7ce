"""Two answers after one prompt in one row, computed as if each stood alone behind it.

Letters: B rows, T ids, W width.
A row is the prompt, the first answer, the second. The second sees the prompt and itself, and its
positions go on from the prompt's end. Step-1 takes that as it is; other models of transformers
take it as a mask and positions, if all their layers look at every place of a row.
"""

from typing import Any

import torch
from torch import Tensor

from aqaa.backbone.loading import Backbone

_PROMPT, _FIRST, _SECOND = [5, 3, 4], [7, 6], [8, 9, 5]  # any ids that every table has


def hidden_of_forks(backbone: Backbone, input_ids: Tensor, forks: Tensor) -> Any:
    """Run the decoder on ids (B, T) that fork; the result has ``last_hidden_state`` (B, T, W).

    Args:
        backbone: one that :func:`can_fork`.
        input_ids: (B, T), padded on the right.
        forks: (B, 2) places where the first and the second answer begin.
    """
    if backbone.model.config.model_type == "step1":
        return backbone.hidden(input_ids, forks=forks)
    positions, seen = places_seen(forks, input_ids.shape[1])
    return backbone.hidden(input_ids, position_ids=positions, attention_mask=seen)


def places_seen(forks: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Positions (B, T) of the ids of rows that fork, and what each sees, (B, 1, T, T)."""
    place = torch.arange(width, device=forks.device)
    first, second = forks[:, :1], forks[:, 1:]
    branch = place >= second  # (B, T): in the second answer, or the padding after it
    positions = torch.where(branch, place - second + first, place)
    other = (place >= first) & (place < second)
    seen = (place[:, None] >= place) & ~(branch[:, :, None] & other[:, None])
    return positions, seen[:, None]


@torch.no_grad()
def can_fork(backbone: Backbone) -> bool:
    """Whether rows that fork give this backbone the states of separate rows: it is tried.

    Its weights may be sharded; then all ranks must come here.
    """
    config, device = backbone.model.config, backbone.table.device
    if device.type == "meta" or config.model_type == "step1":
        return True
    kinds = getattr(config, "layer_types", None)
    if any(kind != "full_attention" for kind in kinds or []):
        return False
    if kinds is None and getattr(config, "sliding_window", None):
        return False
    prompt = len(_PROMPT)
    row = torch.tensor([_PROMPT + _FIRST + _SECOND], device=device)
    fork = torch.tensor([[prompt, prompt + len(_FIRST)]], device=device)
    training = backbone.model.training
    backbone.model.eval()
    try:
        both = hidden_of_forks(backbone, row, fork).last_hidden_state
        alone = torch.tensor([_PROMPT + _SECOND], device=device)
        wanted = backbone.hidden(alone).last_hidden_state[0, prompt:]
    except (TypeError, ValueError, RuntimeError):
        return False
    finally:
        backbone.model.train(training)
    close = 1e-4 if wanted.dtype == torch.float32 else 5e-2
    return bool((both[0, -len(_SECOND) :] - wanted).abs().max() <= close * wanted.abs().max())
