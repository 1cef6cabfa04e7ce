"""Mel and a harmonic source to a waveform: transposed convolutions and an inverse STFT (HiFT).

Letters: B clips, M mel bins, C channels, F mel frames, T = 256 F samples, N = FFT size.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqaa.errors import UsageError
from aqaa.signals import MEL_BINS, VOCODER_HOP_SAMPLES
from aqaa.storage import load_organ, save_organ
from aqaa.vocoder.source import HarmonicSource, NormedConv, PitchPredictor

CLAMP = 0.99
SLOPE, LAST_SLOPE = 0.1, 0.01  # of the leaky ReLUs; the last one is another
MAX_MAGNITUDE = 100.0
EDGE = 7  # kernel of the first and the last convolution
HOPS_PER_FFT = 4


class Snake(nn.Module):
    """x + sin(a x)^2 / a, one a a channel."""

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F) -> (B, C, F)."""
        alpha = self.alpha[:, None]
        return x + (alpha * x).sin().pow(2) / (alpha + 1e-9)


class ResBlock(nn.Module):
    """Pairs of convolutions, the first dilated more from pair to pair, each pair added."""

    def __init__(self, *, channels: int, kernel: int, layers: int) -> None:
        super().__init__()

        def convolution(dilation: int) -> NormedConv:
            padding = dilation * (kernel - 1) // 2
            return NormedConv(channels, channels, kernel, padding=padding, dilation=dilation)

        self.convs1 = nn.ModuleList(convolution(2 * i + 1) for i in range(layers))
        self.convs2 = nn.ModuleList(convolution(1) for _ in range(layers))
        self.activations1 = nn.ModuleList(Snake(channels=channels) for _ in range(layers))
        self.activations2 = nn.ModuleList(Snake(channels=channels) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F) -> (B, C, F)."""
        pairs = zip(
            self.activations1, self.convs1, self.activations2, self.convs2, strict=True
        )
        for snake1, conv1, snake2, conv2 in pairs:
            x = x + conv2(snake2(conv1(snake1(x))))
        return x


class Hift(nn.Module):
    """Waveform head of the full-size vocoder.

    Args:
        channels: after the first convolution; halved at each step up.
        rates: of the steps up; with the hop of the inverse STFT they make 256 samples a frame.
        fft_size: N, four hops.
        kernels, source_kernels: of the residual blocks after each step, and of the source's.
        dilations: layers of a residual block, dilated 1, 3, 5, ...
        harmonics: of the source above the fundamental.
        pitch_channels, pitch_layers: of the pitch predictor.
        mel_bins: as named.
    """

    def __init__(
        self,
        *,
        channels: int = 512,
        rates: Sequence[int] = (8, 8),
        fft_size: int = 16,
        kernels: Sequence[int] = (3, 7, 11),
        source_kernels: Sequence[int] = (7, 11),
        dilations: int = 3,
        harmonics: int = 8,
        pitch_channels: int = 512,
        pitch_layers: int = 5,
        mel_bins: int = MEL_BINS,
    ) -> None:
        super().__init__()
        self.settings = {
            "channels": channels, "rates": list(rates), "fft_size": fft_size,
            "kernels": list(kernels), "source_kernels": list(source_kernels),
            "dilations": dilations, "harmonics": harmonics, "pitch_channels": pitch_channels,
            "pitch_layers": pitch_layers, "mel_bins": mel_bins,
        }  # fmt: skip
        self.mel_bins, self.fft_size, self.hop_samples = mel_bins, fft_size, VOCODER_HOP_SAMPLES
        self.fft_hop_samples = fft_size // HOPS_PER_FFT
        hop_samples = math.prod(rates) * self.fft_hop_samples
        if hop_samples != VOCODER_HOP_SAMPLES:
            raise UsageError(
                f"rates {list(rates)} and an FFT of {fft_size} make {hop_samples} samples a "
                f"frame, not {VOCODER_HOP_SAMPLES}"
            )
        if not len(rates) == len(source_kernels) > 0:
            raise UsageError(f"{len(rates)} steps up need as many source kernels")
        self.m_source = HarmonicSource(harmonics=harmonics, hop_samples=hop_samples)
        self.f0_predictor = PitchPredictor(
            mel_bins=mel_bins, channels=pitch_channels, layers=pitch_layers
        )
        self.conv_pre = NormedConv(mel_bins, channels, EDGE, padding=EDGE // 2)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        self.source_downs, self.source_resblocks = nn.ModuleList(), nn.ModuleList()
        for step, rate in enumerate(rates):
            wide, narrow = channels >> step, channels >> (step + 1)
            up = NormedConv(wide, narrow, 2 * rate, stride=rate, padding=rate // 2, transposed=True)
            self.ups.append(up)
            self.source_downs.append(_shrink(fft_size + 2, narrow, math.prod(rates[step + 1 :])))
            self.source_resblocks.append(
                ResBlock(channels=narrow, kernel=source_kernels[step], layers=dilations)
            )
            self.resblocks.extend(
                ResBlock(channels=narrow, kernel=k, layers=dilations) for k in kernels
            )
        self.conv_post = NormedConv(narrow, fft_size + 2, EDGE, padding=EDGE // 2)

    @property
    def reach_frames(self) -> int:
        """Frames on either side, of mel and source, that decide about a frame's samples."""
        settings: dict[str, Any] = self.settings
        rates, layers = settings["rates"], settings["dilations"]
        widest = max([*settings["kernels"], *settings["source_kernels"]]) // 2
        block = widest * (layers**2 + layers)  # dilated by 1 + 3 + 5 ..., and by 1 for each
        # Up to the first step's blocks, either the mel reaches further or the source does.
        frames, rate = max(EDGE / 2 + 1, (block + 2) / rates[0]), 1
        for step in rates:
            rate *= step
            frames += (block + step) / rate
        return math.ceil(frames + (EDGE / 2 + HOPS_PER_FFT + 1) / rate) + 1

    def f0(self, mel: Tensor) -> Tensor:
        """Log-mel (B, M, F) -> pitch in Hz (B, F)."""
        self._check(mel)
        pitch: Tensor = self.f0_predictor(mel)
        return pitch

    def decode(self, mel: Tensor, source: Tensor) -> Tensor:
        """Log-mel (B, M, F) and source (B, 1, T) -> samples (B, T) in -0.99..0.99.

        Raises:
            UsageError: shapes that do not fit, numbers that are not finite.
        """
        self._check(mel, source)
        return self._invert(self._polar(mel, self._analyse(source))).clamp(-CLAMP, CLAMP)

    def forward(self, mel: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Log-mel (B, M, F) -> samples (B, T), with a source of the mel's own pitch."""
        return self.decode(mel, self.m_source(self.f0(mel), generator))

    def _polar(self, mel: Tensor, spectrum: Tensor) -> Tensor:
        """Log-magnitude and phase of each STFT frame, (B, N + 2, 64 F + 1)."""
        x = self.conv_pre(mel)
        each = len(self.resblocks) // len(self.ups)
        for step, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            if step + 1 == len(self.ups):  # n hops have n + 1 frames
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + self.source_resblocks[step](self.source_downs[step](spectrum))
            blocks = list(self.resblocks)[step * each : (step + 1) * each]
            x = torch.stack([block(x) for block in blocks]).sum(0) / each
        polar: Tensor = self.conv_post(F.leaky_relu(x, LAST_SLOPE))
        return polar

    def _analyse(self, source: Tensor) -> Tensor:
        """Real, then imaginary parts of the source's STFT: (B, N + 2, 64 F + 1)."""
        window = torch.hann_window(self.fft_size, device=source.device)
        spectrum = torch.stft(
            source[:, 0], self.fft_size, self.fft_hop_samples, window=window, return_complex=True
        )
        return torch.cat([spectrum.real, spectrum.imag], 1)

    def _invert(self, polar: Tensor) -> Tensor:
        """(B, N + 2, 64 F + 1) -> (B, T)."""
        half, polar = self.fft_size // 2 + 1, polar.float()  # no half precision in a spectrum
        magnitude = polar[:, :half].exp().clamp(max=MAX_MAGNITUDE)
        phase = polar[:, half:].sin()
        spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
        window = torch.hann_window(self.fft_size, device=polar.device)
        return torch.istft(spectrum, self.fft_size, self.fft_hop_samples, window=window)

    def _check(self, mel: Tensor, source: Tensor | None = None) -> None:
        """Refuse other shapes, and outside training what is not finite."""
        if mel.dim() != 3 or mel.shape[1] != self.mel_bins or not mel.shape[2]:
            raise UsageError(f"a mel (B, {self.mel_bins}, F) is needed, not {tuple(mel.shape)}")
        wanted = (len(mel), 1, VOCODER_HOP_SAMPLES * mel.shape[2])
        if source is not None and tuple(source.shape) != wanted:
            raise UsageError(f"the source has the shape {tuple(source.shape)}, not {wanted}")
        if self.training:
            return
        for name, value in (("mel", mel), ("source", source)):
            if value is not None and not bool(value.isfinite().all()):
                raise UsageError(f"the {name} holds NaN or infinity")

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, the numbers as ``dtype`` where one is given."""
        save_organ(folder, "Hift", self.settings, self.state_dict(), dtype)

    @classmethod
    def load(cls, folder: str | Path) -> "Hift":
        """Read a folder of :meth:`save`, in evaluation mode."""
        return load_organ(folder, cls)


def _shrink(channels_in: int, channels: int, rate: int) -> nn.Conv1d:
    """From STFT frames to the frames of a step, ``rate`` of the first in one of the second."""
    if rate == 1:
        return nn.Conv1d(channels_in, channels, 1)
    return nn.Conv1d(channels_in, channels, 2 * rate, stride=rate, padding=rate // 2)
