"""Changes to a log-mel that keep its words: tempo, vocal tract, channel, noise, masks.

Letters: C mel bins, F frames.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from aqaa.audio.mel import LOG_MEL_FLOOR
from aqaa.signals import GROUP_FRAMES

_MASKED = -5.0


@dataclass(frozen=True)
class Augmentation:
    """How strong each change is; one call of :meth:`apply` draws all of them.

    Args:
        warp: probability of the tempo change, and of the frequency warp.
        tempo, tract: ranges of the two factors.
        gain: standard deviation of a level change, in nats.
        equaliser: probability of a smooth random filter.
        noise: probability of a noise floor.
        mask: probability of a masked band of frequencies, and of a masked stretch of time.
    """

    warp: float = 0.7
    tempo: tuple[float, float] = (0.85, 1.18)
    tract: tuple[float, float] = (0.86, 1.16)
    gain: float = 0.3
    equaliser: float = 0.6
    noise: float = 0.4
    mask: float = 0.5

    def apply(
        self,
        mel: Tensor,
        rng: random.Random,
        generator: torch.Generator,
        *,
        floor: float = LOG_MEL_FLOOR,
    ) -> Tensor:
        """(C, F) -> (C, F'), whole groups where the tempo changed; nothing below ``floor``."""
        mel = self._stretch(mel, rng)
        bins, frames = mel.shape
        mel = mel + rng.gauss(0, self.gain)
        if rng.random() < self.equaliser:
            knots = torch.randn(1, 1, rng.randint(2, 6), generator=generator) * 0.5
            curve = F.interpolate(knots, size=bins, mode="linear", align_corners=True)
            mel = mel + curve[0, 0][:, None]
        if rng.random() < self.noise:
            hiss = torch.randn(bins, frames, generator=generator) * 0.5 + rng.uniform(-6.5, -3.0)
            mel = torch.logaddexp(mel, hiss)
        mel = mel.clamp(min=floor).clone()
        if rng.random() < self.mask:
            low = rng.randint(0, bins - 10)
            mel[low : low + rng.randint(2, 10)] = _MASKED
        if rng.random() < self.mask:
            start = rng.randint(0, frames - 6)
            mel[:, start : start + rng.randint(2, 8)] = _MASKED
        return mel

    def _stretch(self, mel: Tensor, rng: random.Random) -> Tensor:
        """Tempo and vocal tract by one resampling of the picture."""
        tempo = rng.uniform(*self.tempo) if rng.random() < self.warp else 1.0
        tract = rng.uniform(*self.tract) if rng.random() < self.warp else 1.0
        if tempo == tract == 1.0:
            return mel
        bins, frames = mel.shape
        length = max(GROUP_FRAMES, round(frames * tempo / GROUP_FRAMES) * GROUP_FRAMES)
        y = ((torch.arange(bins) + 0.5) / bins * tract * 2 - 1).clamp(-1, 1)
        x = (torch.arange(length) + 0.5) / length * 2 - 1
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
        resampled = F.grid_sample(mel[None, None], grid, align_corners=False, padding_mode="border")
        return resampled[0, 0]
