"""Full-size flow and waveform head in a row: a :class:`CodePair` in, sound at 22.05 kHz out.

Letters: B clips, N tokens, P prompt tokens, M mel bins, F mel frames, S speaker width.
"""

from pathlib import Path

import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.signals import VOCODER_RATE_HZ, CodePair, Waveform
from aqaa.vocabulary import interleaved
from aqaa.vocoder.hift import Hift
from aqaa.vocoder.token_flow import TokenFlow


class TokenVocoder:
    """The voice of one model, as large as the released ones.

    Args:
        flow: tokens to mel.
        head: mel to waveform.
        steps: calls of the flow's network.
        guidance: of the flow.
        solver: of the flow, one of :data:`aqaa.vocoder.solver.SOLVERS`.
    """

    def __init__(
        self,
        flow: TokenFlow,
        head: Hift,
        *,
        steps: int = 10,
        guidance: float = 0.7,
        solver: str = "euler",
    ) -> None:
        self.flow = flow.eval()
        self.head = head.eval()
        self.steps = steps
        self.guidance = guidance
        self.solver = solver

    @classmethod
    def load(cls, folder: str | Path) -> "TokenVocoder":
        """Read ``folder/flow`` and ``folder/waveform``."""
        folder = Path(folder)
        return cls(TokenFlow.load(folder / "flow"), Hift.load(folder / "waveform"))

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write both below ``folder``, the numbers as ``dtype`` where one is given."""
        self.flow.save(Path(folder) / "flow", dtype=dtype)
        self.head.save(Path(folder) / "waveform", dtype=dtype)

    @torch.inference_mode()
    def speak(
        self,
        codes: CodePair,
        *,
        prompt: CodePair | None = None,
        prompt_mel: Tensor | None = None,
        speaker: Tensor | None = None,
        seed: int = 0,
    ) -> Waveform:
        """Sound of whole groups of codes.

        Args:
            codes: what is to be said.
            prompt: codes of a prompt, whose voice goes on; with ``prompt_mel`` or not at all.
            prompt_mel: (1, M, Fp), how the prompt sounds.
            speaker: (1, S), or None for no one in particular.
            seed: of the noise that flow and source start from.

        Raises:
            UsageError: there is no whole group of codes, or a condition does not fit.
        """
        ids = interleaved(codes)
        if not ids:
            raise UsageError("there is nothing to say: the codes hold no whole group of 120 ms")
        generator = torch.Generator().manual_seed(seed)
        frames = self.flow.frames(len(ids)) + (0 if prompt_mel is None else prompt_mel.shape[-1])
        noise = torch.randn(1, self.flow.mel_bins, frames, generator=generator)
        mel = self.flow.sample(
            torch.tensor([ids]),
            prompt_tokens=None if prompt is None else torch.tensor([interleaved(prompt)]),
            prompt_mel=prompt_mel,
            speaker=speaker,
            noise=noise,
            steps=self.steps,
            guidance=self.guidance,
            solver=self.solver,
        )
        return Waveform(self.head(mel, generator)[0].numpy(), VOCODER_RATE_HZ)
