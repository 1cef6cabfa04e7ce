"""The sound of a mel that still grows: each head hears only so far, so seams can be exact.

A piece is made with as many frames on either side as the head reaches, and cut out of the middle;
it equals that of the whole clip but for rounding. Letters: B = 1 clip, M mel bins, F mel frames,
T samples.
"""

from typing import Any

import torch
from torch import Tensor

from aqaa.vocoder.hift import Hift
from aqaa.vocoder.source import SourceState
from aqaa.vocoder.waveform import WaveformHead


class SoundStream:
    """Mel frames in, samples out as soon as the head has heard what follows them.

    Args:
        head: either kind.
        generator: of the noise in a harmonic source.
    """

    def __init__(self, head: WaveformHead | Hift, *, generator: torch.Generator) -> None:
        self._head = head
        self._source = _Source(head, generator) if isinstance(head, Hift) else None
        self._mel = torch.zeros(1, 0, 0)
        self._from = 0  # frames before are forgotten
        self._made = 0  # frames whose samples came out

    def push(self, mel: Tensor, *, last: bool = False) -> Tensor:
        """Take the next frames (1, M, F); ``last`` ends the clip: the samples (T,) now certain."""
        self._mel = torch.cat([self._mel, mel], 2) if self._mel.shape[2] else mel
        end = self._from + self._mel.shape[2]
        if self._source is not None:
            end = self._source.hear(self._mel, self._from, last=last)
        reach = self._head.reach_frames
        ready = end if last else end - reach
        if ready <= self._made:
            return mel.new_zeros(0)
        start, stop = max(self._from, self._made - reach), min(end, ready + reach)
        heard = self._mel[:, :, start - self._from : stop - self._from]
        if self._source is None:
            samples = self._head(heard)[0]
        else:
            head: Any = self._head
            samples = head.decode(heard, self._source.between(start, stop))[0]
        hop = self._head.hop_samples
        samples = samples[(self._made - start) * hop : (ready - start) * hop]
        self._forget(ready)
        return samples

    def _forget(self, ready: int) -> None:
        """Samples before frame ``ready`` are out: keep what later ones need."""
        self._made = ready
        keep = max(self._from, ready - self._head.reach_frames - _pitch_reach(self._head))
        self._mel, self._from = self._mel[:, :, keep - self._from :], keep
        if self._source is not None:
            self._source.forget(keep)


class _Source:
    """The harmonic source of a growing mel."""

    def __init__(self, head: Hift, generator: torch.Generator) -> None:
        self._head, self._generator = head, generator
        self._state = SourceState()
        self._samples = torch.zeros(1, 1, 0)
        self._from = 0
        self._end = 0

    def hear(self, mel: Tensor, begin: int, *, last: bool) -> int:
        """Sound up to the last frame whose pitch is certain in ``mel`` from ``begin``; its end."""
        reach, known = _pitch_reach(self._head), begin + mel.shape[2]
        end = known if last else max(self._end, known - reach)
        if end > self._end:
            start, stop = max(begin, self._end - reach), min(known, end + reach)
            pitch = self._head.f0(mel[:, :, start - begin : stop - begin])
            pitch = pitch[:, self._end - start : end - start]
            more = self._head.m_source(pitch, self._generator, self._state)
            self._samples = torch.cat([self._samples.to(more), more], 2)
            self._end = end
        return self._end

    def between(self, start: int, stop: int) -> Tensor:
        """Source (1, 1, T) of some frames."""
        hop = self._head.hop_samples
        return self._samples[:, :, (start - self._from) * hop : (stop - self._from) * hop]

    def forget(self, keep: int) -> None:
        """Frames before ``keep`` are not asked for again."""
        keep = min(keep, self._end)
        self._samples = self._samples[:, :, (keep - self._from) * self._head.hop_samples :]
        self._from = keep


def _pitch_reach(head: WaveformHead | Hift) -> int:
    """Frames on either side that the pitch of a frame depends on."""
    return head.f0_predictor.reach_frames if isinstance(head, Hift) else 0
