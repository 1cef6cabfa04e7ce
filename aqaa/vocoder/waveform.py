"""Log-mel to waveform: ConvNeXt blocks and an inverse STFT head (Vocos).

Letters: B clips, C channels, F mel frames, T samples (F hops), N = n_fft.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqaa.signals import MEL_BINS, MEL_RATE_HZ, QUESTION_RATE_HZ
from aqaa.storage import load_organ, save_organ

HOP_SAMPLES = QUESTION_RATE_HZ // MEL_RATE_HZ
_CENTRE, _SPREAD = -3.0, 2.5
_MAX_MAGNITUDE = 100.0


class ConvNeXt(nn.Module):
    """Depthwise convolution, then a two-layer MLP, scaled and added."""

    def __init__(self, *, channels: int, inner: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, inner)
        self.narrow = nn.Linear(inner, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F) -> (B, C, F)."""
        h = self.norm(self.convolution(x).transpose(1, 2))
        return x + (self.scale * self.narrow(F.gelu(self.widen(h)))).transpose(1, 2)


def inverse_stft(spectrum: Tensor, window: Tensor, hop_samples: int) -> Tensor:
    """Overlap-add with "same" framing: F frames give F * hop samples.

    Args:
        spectrum: complex (B, N / 2 + 1, F).
        window: (N,).
        hop_samples: samples between frames.

    Returns:
        (B, F * hop). torch.istft can only start at a frame's centre, hence this one.
    """
    size = len(window)
    frames = torch.fft.irfft(spectrum, size, dim=1) * window[:, None]
    count = frames.shape[2]
    length = (count - 1) * hop_samples + size
    shape = {"output_size": (1, length), "kernel_size": (1, size), "stride": (1, hop_samples)}
    summed = F.fold(frames, **shape)[:, 0, 0]
    energy = F.fold(window.pow(2)[None, :, None].expand(1, size, count), **shape)[0, 0, 0]
    edge = (size - hop_samples) // 2
    return summed[:, edge : length - edge] / energy[edge : length - edge].clamp(min=1e-8)


class WaveformHead(nn.Module):
    """Predicts magnitude and phase of every frame and inverts them.

    Args:
        channels, inner, blocks: of the ConvNeXt stack.
        fft_size: N of the inverse STFT.
        hop_samples: samples of a mel frame; 160 at 16 kHz, 256 for the full-size vocoder's mel.
    """

    window: Tensor

    def __init__(
        self,
        *,
        channels: int = 192,
        inner: int = 512,
        blocks: int = 5,
        fft_size: int = 640,
        hop_samples: int = HOP_SAMPLES,
    ) -> None:
        super().__init__()
        self.settings = {
            "channels": channels, "inner": inner, "blocks": blocks, "fft_size": fft_size,
            "hop_samples": hop_samples,
        }  # fmt: skip
        self.hop_samples = hop_samples
        self.embed = nn.Conv1d(MEL_BINS, channels, 7, padding=3)
        self.norm_in = nn.LayerNorm(channels)
        self.blocks = nn.ModuleList(
            ConvNeXt(channels=channels, inner=inner) for _ in range(blocks)
        )
        self.norm_out = nn.LayerNorm(channels)
        self.project = nn.Linear(channels, fft_size + 2)
        self.register_buffer("window", torch.hann_window(fft_size), persistent=False)

    @property
    def reach_frames(self) -> int:
        """Frames on either side that decide about a frame's samples."""
        overlap = (len(self.window) - self.hop_samples) / 2 / self.hop_samples
        return 3 * (len(self.blocks) + 1) + math.ceil(overlap)

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (B, 80, F) -> samples (B, T)."""
        x = self.embed((mel - _CENTRE) / _SPREAD).transpose(1, 2)
        x = self.norm_in(x).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        polar = self.project(self.norm_out(x.transpose(1, 2))).transpose(1, 2)
        log_magnitude, phase = polar.float().chunk(2, 1)  # spectra are not made in half precision
        magnitude = log_magnitude.exp().clamp(max=_MAX_MAGNITUDE)
        spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
        return inverse_stft(spectrum, self.window, self.hop_samples)

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, the numbers as ``dtype`` where one is given."""
        save_organ(folder, "WaveformHead", self.settings, self.state_dict(), dtype)

    @classmethod
    def load(cls, folder: str | Path) -> "WaveformHead":
        """Read a folder of :meth:`save`, in evaluation mode."""
        return load_organ(folder, cls)
