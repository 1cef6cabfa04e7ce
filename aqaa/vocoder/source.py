"""The pitch of a mel, and the harmonic sound a throat would make of it.

Letters: B clips, M mel bins, C channels, F mel frames, T = 256 F samples, K harmonics.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqaa.signals import VOCODER_RATE_HZ

SINE_AMPLITUDE = 0.1
VOICED_NOISE = 0.003
VOICED_ABOVE_HZ = 10.0


class NormedConv(nn.Module):
    """A convolution whose weight is kept as direction ``weight_v`` and length ``weight_g``.

    Args:
        channels_in, channels, kernel: as named.
        stride, padding, dilation: of the convolution.
        transposed: a transposed one, which lengthens.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.transposed = transposed
        first, second = (channels_in, channels) if transposed else (channels, channels_in)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.weight_v = nn.Parameter(0.01 * torch.randn(first, second, kernel))
        self.weight_g = nn.Parameter(self._length().detach().clone())

    def _length(self) -> Tensor:
        return torch.linalg.vector_norm(self.weight_v, dim=(1, 2), keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, Cin, F) -> (B, C, F')."""
        weight = self.weight_v * (self.weight_g / self._length())
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        if self.transposed:
            return F.conv_transpose1d(x, weight, self.bias, **options)
        return F.conv1d(x, weight, self.bias, **options)


class PitchPredictor(nn.Module):
    """Mel to fundamental frequency; ``reach_frames`` on either side decide about a frame's."""

    def __init__(self, *, mel_bins: int, channels: int, layers: int = 5) -> None:
        super().__init__()
        self.reach_frames = layers
        blocks: list[nn.Module] = []
        for i in range(layers):
            convolution = NormedConv(channels if i else mel_bins, channels, 3, padding=1)
            blocks += [convolution, nn.ELU()]
        self.condnet = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        """(B, M, F) -> Hz (B, F), nothing negative."""
        pitch: Tensor = self.classifier(self.condnet(mel).transpose(1, 2))
        return pitch[..., 0].abs()


@dataclass
class SourceState:
    """Where a source stands between two stretches of a clip; None before the first.

    ``turns`` (B, 1, 1) of the fundamental so far, ``start`` (B, 1, K + 1) where its sines began.
    """

    turns: Tensor | None = None
    start: Tensor | None = None


class HarmonicSource(nn.Module):
    """Sines at the pitch and its multiples, mixed to one; noise where there is no pitch.

    Args:
        harmonics: above the fundamental.
        hop_samples: samples of a mel frame.
    """

    def __init__(self, *, harmonics: int, hop_samples: int) -> None:
        super().__init__()
        self.hop_samples = hop_samples
        self.l_linear = nn.Linear(harmonics + 1, 1)

    @torch.no_grad()
    def sines(
        self,
        f0: Tensor,
        generator: torch.Generator | None = None,
        state: SourceState | None = None,
    ) -> Tensor:
        """Pitch in Hz (B, F) -> (B, T, K + 1) at the amplitude of a source.

        A ``state`` goes on where the stretch before has left it, and is moved on.
        """
        state = state or SourceState()
        pitch = f0.repeat_interleave(self.hop_samples, 1)[..., None]
        count = self.l_linear.in_features
        # Turns are summed in float64: a minute of float32 would be out of tune.
        turns = (pitch.double() / VOCODER_RATE_HZ).cumsum(1)
        if state.turns is not None:
            turns = turns + state.turns
        if state.start is None:
            state.start = torch.rand(len(f0), 1, count, generator=generator).to(f0)
            state.start[..., 0] = 0
        state.turns = turns[:, -1:]
        turns = turns * torch.arange(1, count + 1, device=f0.device)
        waves = torch.sin(2 * math.pi * ((turns % 1).to(f0.dtype) + state.start))
        voiced = (pitch > VOICED_ABOVE_HZ).to(f0.dtype)
        loudness = voiced * VOICED_NOISE + (1 - voiced) * SINE_AMPLITUDE / 3
        noise = torch.randn(waves.shape, generator=generator).to(f0)
        return SINE_AMPLITUDE * waves * voiced + loudness * noise

    def forward(
        self,
        f0: Tensor,
        generator: torch.Generator | None = None,
        state: SourceState | None = None,
    ) -> Tensor:
        """Pitch in Hz (B, F) -> source (B, 1, T)."""
        mixed: Tensor = self.l_linear(self.sines(f0, generator, state))
        return mixed.tanh().transpose(1, 2)
