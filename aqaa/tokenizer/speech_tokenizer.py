"""One book: an encoder, a codebook in its middle, and the heads that teach it.

The linguistic book learns phones alone (CTC), so it keeps what was said; the semantic book also
rebuilds the mel, so it keeps how. Both follow paper section 2.1 in rate and size; the released
encoders (Paraformer, Whisper-style) are larger relatives of this one.
Letters: B clips, T samples, F mel frames, N codes, S CTC steps, P labels with blank.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from aqaa.audio.file import PEAK
from aqaa.audio.mel import log_mel
from aqaa.errors import UsageError
from aqaa.layers import ConvAttention
from aqaa.signals import GROUP_SAMPLES, MEL_BINS
from aqaa.storage import load_organ, save_organ
from aqaa.tokenizer.codebook import Codebook
from aqaa.tokenizer.encoder import MelEncoder

# Log-mels of speech at our scale lie around -3 with a spread of about 3.
_CENTRE, _SPREAD = -3.0, 3.0


@dataclass(frozen=True)
class TokenizerOutput:
    """What one forward pass gives.

    ``log_probs`` (B, S, P), ``steps`` (B,), ``mel`` (B, 80, F) or None, ``z`` and ``quantised``
    (B, N, D; the book's vectors before a training step moves them), ``codes`` (B, N) or None
    before the book is active, ``mask`` (B, N), ``extra`` further loss terms and ``weights`` theirs.
    """

    log_probs: Tensor
    steps: Tensor
    mel: Tensor | None
    z: Tensor
    quantised: Tensor
    codes: Tensor | None
    mask: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


class SpeechTokenizer(nn.Module):
    """Mel to codes of one book.

    Args:
        book: ``linguistic`` or ``semantic``.
        phones: CTC labels in order; label 0 is the blank and not among them.
        codes: size of the book.
        frames_per_code: mel frames one code covers (6: 16.7 Hz, 4: 25 Hz).
        ctc_steps: CTC steps per code; speech has more phones than 16.7 a second.
        width, blocks, code_width: of the encoder.
    """

    peak = PEAK

    def __init__(
        self,
        *,
        book: str,
        phones: list[str],
        codes: int,
        frames_per_code: int,
        ctc_steps: int,
        width: int = 160,
        blocks: int = 2,
        code_width: int = 16,
    ) -> None:
        super().__init__()
        self.settings = {
            "book": book,
            "phones": list(phones),
            "codes": codes,
            "frames_per_code": frames_per_code,
            "ctc_steps": ctc_steps,
            "width": width,
            "blocks": blocks,
            "code_width": code_width,
        }
        if book not in ("linguistic", "semantic"):
            raise UsageError(f"book {book!r} is neither linguistic nor semantic")
        self.book = book
        self.phones = list(phones)
        self.ctc_steps = ctc_steps
        self.frames_per_code = frames_per_code
        self.encoder = MelEncoder(
            frames_per_code=frames_per_code, width=width, blocks=blocks, code_width=code_width
        )
        self.codebook = Codebook(codes=codes, width=code_width)
        self.widen = nn.Linear(code_width, width)
        self.decoder = ConvAttention(width=width)
        self.ctc_head = nn.Linear(width, ctc_steps * (len(phones) + 1))
        rebuild = book == "semantic"
        self.mel_head = nn.Linear(width, MEL_BINS * frames_per_code) if rebuild else None

    def normalise(self, mel: Tensor, mask: Tensor) -> Tensor:
        """Scale a log-mel (B, 80, F) under its (B, F) mask.

        The linguistic book also loses each clip's mean spectrum, which is voice and channel.
        """
        if self.book == "linguistic":
            mean = (mel * mask[:, None]).sum(2, keepdim=True) / mask.sum(1)[:, None, None]
            return (mel - mean) / _SPREAD
        return (mel - _CENTRE) / _SPREAD

    def forward(self, mel: Tensor, mask: Tensor) -> TokenizerOutput:
        """Run everything; (B, 80, F) log-mel and its (B, F) mask."""
        z, code_mask = self.encoder(self.normalise(mel, mask), mask)
        quantised, chosen, codes = z, z, None
        if self.codebook.active:
            found = self.codebook(z, code_mask)
            quantised, chosen, codes = found.vectors, found.chosen, found.codes
        h = self.decoder(self.widen(quantised), code_mask)
        batch, length, _ = h.shape
        logits = self.ctc_head(h).view(batch, length * self.ctc_steps, len(self.phones) + 1)
        mel_out = None
        if self.mel_head is not None:
            rebuilt = self.mel_head(h).view(batch, length * self.frames_per_code, MEL_BINS)
            mel_out = rebuilt.transpose(1, 2) * _SPREAD + _CENTRE
        steps = code_mask.sum(1) * self.ctc_steps
        return TokenizerOutput(logits.log_softmax(-1), steps, mel_out, z, chosen, codes, code_mask)

    @torch.no_grad()
    def vectors(self, mel: Tensor, mask: Tensor) -> Tensor:
        """What the codebook is to name (n, D) in a log-mel (B, 80, F) and its (B, F) mask."""
        z, code_mask = self.encoder(self.normalise(mel, mask), mask)
        return z[code_mask.bool()]

    @torch.no_grad()
    def encode(self, mel: Tensor, mask: Tensor) -> Tensor:
        """Codes (B, N) of a log-mel (B, 80, F)."""
        if not self.codebook.active:
            raise UsageError(f"the {self.book} codebook was never started from data")
        z, _ = self.encoder(self.normalise(mel, mask), mask)
        return self.codebook.search(z)

    def encode_sound(self, samples: Tensor) -> list[int]:
        """Codes of one mono clip (T,) at 16 kHz, T whole groups of 1,920 samples."""
        if not len(samples) or len(samples) % GROUP_SAMPLES:
            raise UsageError(
                f"{len(samples)} samples are not whole groups of {GROUP_SAMPLES}: pad them first"
            )
        mel = log_mel(samples[None])
        codes: list[int] = self.encode(mel, torch.ones(1, mel.shape[2]))[0].tolist()
        return codes

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, the numbers as ``dtype`` where one is given."""
        save_organ(folder, "SpeechTokenizer", self.settings, self.state_dict(), dtype)

    @classmethod
    def load(cls, folder: str | Path) -> "SpeechTokenizer":
        """Read a folder of :meth:`save`, in evaluation mode."""
        return load_organ(folder, cls)
