"""The vocoder's one door: whichever networks lie in its folders, something that speaks.

Letters: none; codes go in and sound comes out.
"""

from pathlib import Path
from typing import Protocol

import torch

from aqaa.errors import UsageError
from aqaa.signals import CodePair, Waveform
from aqaa.storage import organ_of
from aqaa.vocoder.flow import FlowVocoder
from aqaa.vocoder.hift import Hift
from aqaa.vocoder.solver import check
from aqaa.vocoder.token_flow import TokenFlow
from aqaa.vocoder.token_vocoder import TokenVocoder
from aqaa.vocoder.vocoder import Vocoder
from aqaa.vocoder.waveform import HOP_SAMPLES, WaveformHead


class Voice(Protocol):
    """A vocoder of either size; its flow is solved by ``steps``, ``guidance`` and ``solver``."""

    steps: int
    guidance: float
    solver: str

    def speak(self, codes: CodePair) -> Waveform:
        """Sound of whole groups of codes."""
        ...

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write ``flow`` and ``waveform`` below a folder."""
        ...


def tune(
    voice: Voice,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    solver: str | None = None,
) -> None:
    """Solve a voice's flow in another way; what is None stays as it is.

    Args:
        voice: is changed.
        steps: calls of the flow's network.
        guidance: how far to go away from the field that is told nothing; 0 spares its calls.
        solver: one of :data:`aqaa.vocoder.solver.SOLVERS`.

    Raises:
        UsageError: there is no such solver, or it cannot take so many steps.
    """
    voice.steps = voice.steps if steps is None else steps
    voice.guidance = voice.guidance if guidance is None else guidance
    voice.solver = voice.solver if solver is None else solver
    check(solver=voice.solver, steps=voice.steps, guidance=voice.guidance)


def load_voice(flow: str | Path, waveform: str | Path) -> Voice:
    """Read the folders of a flow and of a waveform head that belong together.

    Raises:
        UsageError: a folder is damaged or holds another organ, or the two are for different mels.
    """
    kinds = (organ_of(flow), organ_of(waveform))
    if kinds[0] == TokenFlow.__name__:
        return TokenVocoder.of(flow, waveform)
    head = None if kinds[1] == Hift.__name__ else WaveformHead.load(waveform)
    if head is None or head.hop_samples != HOP_SAMPLES:
        raise UsageError(
            f"{waveform} is a head for 22.05 kHz, {flow} a flow for 16 kHz: their mels differ"
        )
    return Vocoder(FlowVocoder.load(flow), head)
