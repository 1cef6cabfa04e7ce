"""The mel of a voice while its codes still come: overlapping windows of the full-size flow.

The flow hears whole clips: its attention and its norms look everywhere. So a window takes some
groups before its chunk and a few after it, starts from the noise that a whole clip would have at
that place, and is faded into the window before. What comes out is what the whole clip gives where
windows are as long as the clip, and near it elsewhere: on the bundled small voice within 0.1 of a
log-mel on the mean at the default pace (tests/vocoder/test_mel_stream.py).
Letters: B = 1 clip, N tokens, M mel bins, F mel frames.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aqaa.errors import UsageError
from aqaa.signals import GROUP_TOKENS

_MANY_GROUPS = 128  # last a whole number of the vocoder's frames


@dataclass(frozen=True)
class Pace:
    """How a stream is cut, in groups of 120 ms: three last very nearly 31 frames of 22.05 kHz.

    Args:
        chunk_groups: that come out of a window.
        context_groups: heard before them.
        ahead_groups: heard after them; a chunk waits for so many.
        fade_frames: of two windows that are faded into one another.
    """

    chunk_groups: int = 3
    context_groups: int = 15
    ahead_groups: int = 3
    fade_frames: int = 8

    def __post_init__(self) -> None:
        if self.chunk_groups < 1 or min(self.context_groups, self.ahead_groups) < 0:
            raise UsageError(f"{self} cannot be kept: chunks need a group, nothing is below 0")


class MelStream:
    """Ids in, mel frames out as soon as their window can be heard.

    Args:
        flow: a :class:`TokenFlow`.
        pace: of the windows.
        told: what else :meth:`TokenFlow.sample` is told: steps, guidance, solver, speaker,
            prompt_tokens, prompt_mel.
        generator: of the noise, frame after frame, on the CPU.
        device: of the flow and of what it is told.
    """

    def __init__(
        self,
        flow: Any,
        *,
        pace: Pace,
        told: dict[str, Any],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        self._flow, self._pace = flow, pace
        self._told = told
        self._generator, self._device = generator, device
        prompt = told.get("prompt_mel")
        self._prompt_noise = self._draw(0 if prompt is None else prompt.shape[-1])
        self._noise, self._noise_from = self._draw(0), 0
        self._ids: list[int] = []
        self._groups_from = 0  # groups before are forgotten
        self._done = 0  # groups that came out
        self._tail: Tensor | None = None

    def push(self, ids: list[int], *, last: bool = False) -> Tensor:
        """Take the ids of whole groups; ``last`` ends the clip: the mel (1, M, F) now certain."""
        self._ids += ids
        parts = [self._draw(0)]
        known = self._groups_from + len(self._ids) // GROUP_TOKENS
        while self._done < known:
            wanted = self._done + self._pace.chunk_groups + self._pace.ahead_groups
            if not last and known < wanted:
                break
            parts.append(self._window(min(wanted, known), known))
        return torch.cat(parts, 2)

    def _window(self, end: int, known: int) -> Tensor:
        """Mel of the next chunk, heard up to group ``end`` of ``known``."""
        pace, after = self._pace, min(self._done + self._pace.chunk_groups, known)
        start = max(0, self._done - pace.context_groups)
        self._ids = self._ids[(start - self._groups_from) * GROUP_TOKENS :]
        self._groups_from = start
        heard = self._ids[: (end - start) * GROUP_TOKENS]
        tokens = torch.tensor([heard], device=self._device)
        place = round(start * self._rate)
        count = self._flow.frames(tokens.shape[1])
        noise = torch.cat([self._prompt_noise, self._noise_at(place, count)], 2)
        mel = self._flow.sample(tokens, noise=noise, **self._told)
        first, stop = self._frame(self._done) - place, self._frame(after) - place
        mel = F.pad(mel, (0, max(0, stop - mel.shape[2])), mode="replicate")
        piece = _faded(self._tail, mel[:, :, first:stop])
        self._tail, self._done = mel[:, :, stop : stop + pace.fade_frames], after
        return piece

    @property
    def _rate(self) -> float:
        frames: int = self._flow.frames(_MANY_GROUPS * GROUP_TOKENS)
        return frames / _MANY_GROUPS

    def _frame(self, group: int) -> int:
        """Where a group begins."""
        frames: int = self._flow.frames(group * GROUP_TOKENS)
        return frames

    def _draw(self, frames: int) -> Tensor:
        """Noise of the next frames, (1, M, F)."""
        drawn = torch.randn(frames, self._flow.mel_bins, generator=self._generator)
        return drawn.T[None].to(self._device)

    def _noise_at(self, place: int, count: int) -> Tensor:
        """Noise of ``count`` frames from frame ``place`` on; what is before is forgotten."""
        short = place + count - self._noise_from - self._noise.shape[2]
        self._noise = torch.cat([self._noise, self._draw(max(0, short))], 2)
        self._noise = self._noise[:, :, place - self._noise_from :]
        self._noise_from = place
        return self._noise[:, :, :count]


def _faded(tail: Tensor | None, piece: Tensor) -> Tensor:
    """A piece (1, M, F) that grows out of the tail of the window before."""
    if tail is None:
        return piece
    count = min(tail.shape[2], piece.shape[2])
    share = torch.arange(1, count + 1, device=piece.device) / (count + 1)
    begun = tail[:, :, :count] * (1 - share) + piece[:, :, :count] * share
    return torch.cat([begun, piece[:, :, count:]], 2)
