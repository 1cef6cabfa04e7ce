"""What chance decides for a training batch of the flow.

Letters: B clips, M mel bins, F mel frames.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aqaa.losses.flow_matching import cosine_time

DROP = 0.2  # of the clips know no condition, so that guidance has a field to go away from
PROMPTED = 0.5  # of the clips see how they begin
LONGEST_PROMPT = 0.3  # of a clip


class Draw(NamedTuple):
    """Chance, of one batch.

    ``noise`` (B, M, F), flow ``time`` (B,), ``keep`` (B,): 0 where the conditions are dropped,
    ``prompt_frames`` (B,): how much of the mel's beginning is given.
    """

    noise: Tensor
    time: Tensor
    keep: Tensor
    prompt_frames: Tensor


def draw(
    mel: Tensor, frame_counts: Sequence[int], *, generator: torch.Generator | None = None
) -> Draw:
    """Chance for a batch of mels (B, M, F) with so many real frames each."""
    batch = len(mel)

    def uniform() -> Tensor:
        return torch.rand(batch, generator=generator).to(mel.device)

    noise = torch.randn(mel.shape, generator=generator).to(mel)
    time, keep = cosine_time(uniform()).to(mel.dtype), uniform() >= DROP
    longest = (LONGEST_PROMPT * torch.tensor(list(frame_counts), device=mel.device)).floor()
    length = (uniform() * (longest + 1)).floor()
    return Draw(noise, time, keep, (length * (uniform() < PROMPTED)).long())
