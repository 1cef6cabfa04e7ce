"""Codes to a log-mel by optimal-transport flow matching (paper section 2.3).

Letters: B clips, G groups, F = 12 G mel frames, P = F / 2 pair frames.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from aqaa.signals import MEL_BINS
from aqaa.storage import load_organ, save_organ
from aqaa.vocoder.conditioning import CodeConditioning
from aqaa.vocoder.solver import follow, named
from aqaa.vocoder.unet import UNet

_CENTRE, _SPREAD = -3.0, 2.5


def pack(mel: Tensor) -> Tensor:
    """Log-mel (B, 80, F) to scaled pairs of frames (B, 160, F / 2)."""
    batch, bins, frames = mel.shape
    pairs = ((mel - _CENTRE) / _SPREAD).reshape(batch, bins, frames // 2, 2)
    return pairs.permute(0, 1, 3, 2).reshape(batch, 2 * bins, frames // 2)


def unpack(pairs: Tensor) -> Tensor:
    """Inverse of :func:`pack`."""
    batch, channels, length = pairs.shape
    mel = pairs.reshape(batch, channels // 2, 2, length).permute(0, 1, 3, 2)
    return mel.reshape(batch, channels // 2, 2 * length) * _SPREAD + _CENTRE


class FlowVocoder(nn.Module):
    """Conditioning, velocity network, and a regression head whose loss teaches the conditioning.

    Args:
        width: channels of the network.
        code_width: width of a code's embedding.
        time_width: of the embedding of the flow time.
    """

    def __init__(self, *, width: int = 160, code_width: int = 96, time_width: int = 96) -> None:
        super().__init__()
        self.settings = {"width": width, "code_width": code_width, "time_width": time_width}
        self.conditioning = CodeConditioning(width=width, code_width=code_width)
        # A mel read straight off the condition: an auxiliary loss, and what the flow has to beat.
        self.prior = nn.Conv1d(width, 2 * MEL_BINS, 1)
        self.unet = UNet(channels_io=2 * MEL_BINS, channels=width, time_width=time_width)

    def velocity(self, point: Tensor, condition: Tensor, time: Tensor, mask: Tensor) -> Tensor:
        """(B, 160, P), (B, C, P), (B,), (B, P) -> (B, 160, P)."""
        return self.unet(point, condition, time, mask)

    @torch.no_grad()
    def sample(
        self,
        linguistic: Tensor,
        semantic: Tensor,
        *,
        steps: int = 8,
        guidance: float = 0.0,
        noise: Tensor | None = None,
        solver: str = "euler",
    ) -> Tensor:
        """Solve the flow.

        Args:
            linguistic: codes (B, 2G).
            semantic: codes (B, 3G).
            steps: calls of the network (of twice the batch with guidance).
            guidance: classifier-free guidance rate; the unguided field has an empty condition.
            noise: (B, 160, P) start; None starts from zero, the mode of the noise, which a flow
                trained for minutes renders best.
            solver: one of :data:`aqaa.vocoder.solver.SOLVERS`.

        Returns:
            Log-mel (B, 80, 12 G).
        """
        pairs = linguistic.shape[1] * 3
        mask = torch.ones(len(linguistic), pairs, device=linguistic.device)
        condition = self.conditioning(linguistic, semantic, mask)
        x = mask.new_zeros(len(linguistic), 2 * MEL_BINS, pairs) if noise is None else noise

        if guidance:  # a guided call is one with twice the batch
            condition = torch.cat([condition, torch.zeros_like(condition)])
            mask = torch.cat([mask, mask])

        def velocity(point: Tensor, time: Tensor) -> Tensor:
            if not guidance:
                return self.velocity(point, condition, time.expand(len(point)), mask)
            both = torch.cat([point, point])
            guided, free = self.velocity(both, condition, time.expand(len(both)), mask).chunk(2)
            return (1 + guidance) * guided - guidance * free

        return unpack(follow(velocity, x, named(solver, steps)))

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, the numbers as ``dtype`` where one is given."""
        save_organ(folder, "FlowVocoder", self.settings, self.state_dict(), dtype)

    @classmethod
    def load(cls, folder: str | Path) -> "FlowVocoder":
        """Read a folder of :meth:`save`, in evaluation mode."""
        return load_organ(folder, cls)
