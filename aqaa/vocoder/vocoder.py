"""Flow and waveform head in a row: a :class:`CodePair` in, sound out."""

from pathlib import Path

import torch

from aqaa.errors import UsageError
from aqaa.signals import QUESTION_RATE_HZ, CodePair, Waveform
from aqaa.vocoder.flow import FlowVocoder
from aqaa.vocoder.waveform import WaveformHead

CLAMP = 0.99


class Vocoder:
    """The voice of one model.

    Args:
        flow: codes to mel.
        head: mel to waveform.
        steps: calls of the flow's network.
        guidance: of the flow.
        solver: of the flow, one of :data:`aqaa.vocoder.solver.SOLVERS`.
    """

    def __init__(
        self,
        flow: FlowVocoder,
        head: WaveformHead,
        *,
        steps: int = 8,
        guidance: float = 0.0,
        solver: str = "euler",
    ) -> None:
        self.flow = flow.eval()
        self.head = head.eval()
        self.steps = steps
        self.guidance = guidance
        self.solver = solver

    @classmethod
    def load(cls, folder: str | Path) -> "Vocoder":
        """Read ``folder/flow`` and ``folder/waveform``."""
        folder = Path(folder)
        return cls(FlowVocoder.load(folder / "flow"), WaveformHead.load(folder / "waveform"))

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write both below ``folder``, the numbers as ``dtype`` where one is given."""
        self.flow.save(Path(folder) / "flow", dtype=dtype)
        self.head.save(Path(folder) / "waveform", dtype=dtype)

    @torch.inference_mode()
    def speak(self, codes: CodePair) -> Waveform:
        """Sound of whole groups of codes; UsageError when there is none."""
        n = codes.groups
        if n == 0:
            raise UsageError("there is nothing to say: the codes hold no whole group of 120 ms")
        linguistic = torch.tensor([codes.linguistic[: 2 * n]])
        semantic = torch.tensor([codes.semantic[: 3 * n]])
        mel = self.flow.sample(
            linguistic, semantic, steps=self.steps, guidance=self.guidance, solver=self.solver
        )
        samples = self.head(mel)[0]
        return Waveform(samples.clamp(-CLAMP, CLAMP).numpy(), QUESTION_RATE_HZ)
