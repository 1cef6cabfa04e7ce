"""Judges that tell made sound from real, for adversarial training of a waveform head.

Multi-period ones (HiFi-GAN) fold the samples into rows of a period; multi-resolution ones (UnivNet)
look at magnitude spectrograms. Letters: B clips, T samples, C channels, R rows, P period,
N FFT size, F frames.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from aqaa.errors import UsageError

SLOPE = 0.1
PERIODS = (2, 3, 5, 7, 11)  # primes, so that no two see the same places
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # FFT, hop, window in samples


class Verdict(NamedTuple):
    """A judge's ``score`` (B, places), and its layers' ``features`` (B, C, ., .)."""

    score: Tensor
    features: list[Tensor]


class Judge(nn.Module):
    """Convolutions over a picture of the sound, and a score at every place.

    Args:
        channels: after each layer.
        kernel: of the layers, in rows and columns.
        last_kernel: of the last layer.
        score_kernel: of the score.
        stride: of all layers but the last, the score's neighbour; the first too where ``early``.
        early: stride from the first layer on.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        kernel: tuple[int, int],
        last_kernel: tuple[int, int],
        score_kernel: tuple[int, int],
        stride: tuple[int, int],
        early: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        before = 1
        for i, after in enumerate(channels):
            last = i + 1 == len(channels)
            size, step = last_kernel if last else kernel, stride
            if last or (i == 0 and not early):
                step = (1, 1)
            self.layers.append(_convolution(before, after, size, step))
            before = after
        self.score = _convolution(before, 1, score_kernel, (1, 1))

    def forward(self, picture: Tensor) -> Verdict:
        """(B, 1, rows, columns) -> verdict."""
        features, x = [], picture
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            features.append(x)
        score = self.score(x)
        return Verdict(score.flatten(1), [*features, score])


def _convolution(
    before: int, after: int, kernel: tuple[int, int], stride: tuple[int, int]
) -> nn.Module:
    padding = (kernel[0] // 2, kernel[1] // 2)
    made: nn.Module = weight_norm(nn.Conv2d(before, after, kernel, stride, padding))
    return made


def fold(samples: Tensor, period: int) -> Tensor:
    """(B, T) -> (B, 1, R, P): sample t at row t // P; the last row is completed by reflection."""
    short = -samples.shape[1] % period
    padded = F.pad(samples[:, None], (0, short), mode="reflect") if short else samples[:, None]
    return padded.unflatten(2, (-1, period))


def spectrogram(samples: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    """(B, T) -> magnitudes (B, 1, F, N / 2 + 1); ``sizes`` are FFT, hop and window in samples."""
    fft, hop, window = sizes
    hann = torch.hann_window(window, device=samples.device)
    spectrum = torch.stft(samples, fft, hop, window, window=hann, return_complex=True)
    return spectrum.abs().transpose(1, 2)[:, None]


class Discriminators(nn.Module):
    """All judges of a training.

    Args:
        periods: of the multi-period judges.
        period_channels: of their layers.
        resolutions: FFT, hop and window of the multi-resolution judges.
        resolution_channels: of their layers.
    """

    def __init__(
        self,
        *,
        periods: Sequence[int] = PERIODS,
        period_channels: Sequence[int] = (32, 128, 512, 1024, 1024),
        resolutions: Sequence[tuple[int, int, int]] = RESOLUTIONS,
        resolution_channels: Sequence[int] = (32, 32, 32, 32, 32),
    ) -> None:
        super().__init__()
        self.periods = list(periods)
        self.resolutions = [(fft, hop, window) for fft, hop, window in resolutions]
        self.by_period = nn.ModuleList(
            Judge(
                channels=period_channels, kernel=(5, 1), last_kernel=(5, 1), score_kernel=(3, 1),
                stride=(3, 1), early=True,
            )
            for _ in periods
        )  # fmt: skip
        self.by_resolution = nn.ModuleList(
            Judge(
                channels=resolution_channels, kernel=(3, 9), last_kernel=(3, 3),
                score_kernel=(3, 3), stride=(1, 2), early=False,
            )
            for _ in resolutions
        )  # fmt: skip

    @property
    def least_samples(self) -> int:
        """The shortest clip that every judge can look at."""
        return max([*self.periods, *(fft // 2 + 1 for fft, _, _ in self.resolutions)])

    def forward(self, samples: Tensor) -> list[Verdict]:
        """(B, T) -> a verdict of each judge.

        Raises:
            UsageError: another shape, or a clip shorter than ``least_samples``.
        """
        if samples.dim() != 2 or samples.shape[1] < self.least_samples:
            raise UsageError(
                f"judges need clips (B, T) of {self.least_samples} samples or more, "
                f"not {tuple(samples.shape)}"
            )
        pictures = [fold(samples, period) for period in self.periods]
        pictures += [spectrogram(samples, sizes) for sizes in self.resolutions]
        judges = [*self.by_period, *self.by_resolution]
        return [judge(picture) for judge, picture in zip(judges, pictures, strict=True)]
