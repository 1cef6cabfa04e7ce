"""Full-size flow and waveform head in a row: a :class:`CodePair` in, sound at 22.05 kHz out.

Letters: B clips, N tokens, P prompt tokens, M mel bins, F mel frames, S speaker width, T samples.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.signals import (
    LINGUISTIC_PER_GROUP,
    SEMANTIC_PER_GROUP,
    VOCODER_HOP_SAMPLES,
    VOCODER_RATE_HZ,
    CodePair,
    Waveform,
)
from aqaa.storage import organ_of
from aqaa.vocabulary import interleaved
from aqaa.vocoder.hift import CLAMP, Hift
from aqaa.vocoder.mel_stream import MelStream, Pace
from aqaa.vocoder.sound_stream import SoundStream
from aqaa.vocoder.token_flow import TokenFlow
from aqaa.vocoder.waveform import WaveformHead

_SOURCE_SEED = 1 << 32  # between the seeds of a clip's two streams of chance: noise and source


class TokenVocoder:
    """The voice of one model, as large as the released ones, on the device of its networks.

    Args:
        flow: tokens to mel.
        head: mel to waveform, either kind.
        steps: calls of the flow's network.
        guidance: of the flow.
        solver: of the flow, one of :data:`aqaa.vocoder.solver.SOLVERS`.
    """

    def __init__(
        self,
        flow: TokenFlow,
        head: Hift | WaveformHead,
        *,
        steps: int = 10,
        guidance: float = 0.7,
        solver: str = "euler",
    ) -> None:
        if head.hop_samples != VOCODER_HOP_SAMPLES:
            raise UsageError(
                f"this head makes {head.hop_samples} samples of a frame: it is for another mel "
                f"than that of the flow, whose frames last {VOCODER_HOP_SAMPLES}"
            )
        self.flow = flow.eval()
        self.head = head.eval()
        self.steps = steps
        self.guidance = guidance
        self.solver = solver

    @property
    def device(self) -> torch.device:
        """Where it works: chance is drawn on the CPU, so that a seed means the same everywhere."""
        return self.flow.encoder_proj.bias.device

    def to(self, device: torch.device | str) -> "TokenVocoder":
        """Move both networks; itself."""
        self.flow.to(device)
        self.head.to(device)
        return self

    @classmethod
    def load(cls, folder: str | Path) -> "TokenVocoder":
        """Read ``folder/flow`` and ``folder/waveform``."""
        return cls.of(Path(folder) / "flow", Path(folder) / "waveform")

    @classmethod
    def of(cls, flow: str | Path, waveform: str | Path) -> "TokenVocoder":
        """Read the folders of a flow and of a head of either kind."""
        kind: Any = Hift if organ_of(waveform) == Hift.__name__ else WaveformHead
        return cls(TokenFlow.load(flow), kind.load(waveform))

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
        frames = self.flow.frames(len(ids)) + (0 if prompt_mel is None else prompt_mel.shape[-1])
        # Frame after frame, as a stream draws it too.
        noise = torch.randn(frames, self.flow.mel_bins, generator=_chance(seed)).T[None]
        told = self._told(prompt, prompt_mel, speaker)
        tokens = torch.tensor([ids], device=self.device)
        mel = self.flow.sample(tokens, noise=noise.to(self.device), **told)
        return _sound(self._samples(mel, _chance(seed + _SOURCE_SEED)))

    def _told(
        self, prompt: CodePair | None, prompt_mel: Tensor | None, speaker: Tensor | None
    ) -> dict[str, Any]:
        """What the flow is told of a clip beside its ids and its noise."""
        tokens = None if prompt is None else torch.tensor([interleaved(prompt)])
        conditions = {"prompt_tokens": tokens, "prompt_mel": prompt_mel, "speaker": speaker}
        here = {k: None if v is None else v.to(self.device) for k, v in conditions.items()}
        way = {"steps": self.steps, "guidance": self.guidance, "solver": self.solver}
        return {**here, **way}

    def _samples(self, mel: Tensor, generator: torch.Generator) -> Tensor:
        """Samples (T,) of a whole mel (1, M, F)."""
        samples: Tensor = self.head(mel, generator) if self._has_source else self.head(mel)
        return samples[0]

    @property
    def _has_source(self) -> bool:
        return isinstance(self.head, Hift)

    def stream(
        self,
        *,
        prompt: CodePair | None = None,
        prompt_mel: Tensor | None = None,
        speaker: Tensor | None = None,
        seed: int = 0,
        pace: Pace | None = None,
    ) -> "VoiceStream":
        """Begin to speak codes that come bit by bit.

        Args:
            prompt: as :meth:`speak` takes it.
            prompt_mel: the same.
            speaker: the same.
            seed: the same.
            pace: of the windows (None: 360 ms a chunk, heard with 1.8 s before and 360 ms after).
        """
        told = self._told(prompt, prompt_mel, speaker)
        generator = _chance(seed)
        mels = MelStream(
            self.flow, pace=pace or Pace(), told=told, generator=generator, device=self.device
        )
        return VoiceStream(mels, SoundStream(self.head, generator=_chance(seed + _SOURCE_SEED)))


class VoiceStream:
    """A voice that speaks while its codes still come.

    However the codes are cut, the sound is the same. Beside the whole clip's it differs by what the
    windows of the flow do not hear (see :mod:`aqaa.vocoder.mel_stream`); the head adds nothing.
    """

    def __init__(self, mels: MelStream, sounds: SoundStream) -> None:
        self._mels, self._sounds = mels, sounds
        self._owed = CodePair([], [])

    def push(self, codes: CodePair) -> Waveform:
        """Take the next codes; the sound that is now certain, perhaps none."""
        return self._next(codes, last=False)

    def finish(self) -> Waveform:
        """No more codes come: the rest of the sound."""
        return self._next(CodePair([], []), last=True)

    @torch.inference_mode()
    def _next(self, codes: CodePair, *, last: bool) -> Waveform:
        owed = CodePair(
            self._owed.linguistic + codes.linguistic, self._owed.semantic + codes.semantic
        )
        two, three = LINGUISTIC_PER_GROUP * owed.groups, SEMANTIC_PER_GROUP * owed.groups
        self._owed = CodePair(owed.linguistic[two:], owed.semantic[three:])
        mel = self._mels.push(interleaved(owed), last=last)
        return _sound(self._sounds.push(mel, last=last))


def _chance(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _sound(samples: Tensor) -> Waveform:
    return Waveform(samples.clamp(-CLAMP, CLAMP).cpu().numpy(), VOCODER_RATE_HZ)
