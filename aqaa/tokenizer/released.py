"""Both books in the released manner: each has its own ear, its own rate, and hears a stream.

The linguistic book hears 240 ms at a time; the semantic one pieces of 30 s, each as a whole, so
in a stream its codes come when a piece is full or the sound ends. A whole clip is a stream in one
go: the codes are the same however the sound was cut.
Letters: T samples, N frames of 60 ms, I frame width, F mel frames.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aqaa.audio.fbank import (
    BLOCK_FRAMES,
    BLOCK_SAMPLES,
    CONTEXT_SAMPLES,
    FRAME_WIDTH,
    fbank,
    linguistic_frontend,
    stack_frames,
    stacked_frames,
)
from aqaa.audio.whisper_mel import whisper_mel
from aqaa.signals import LINGUISTIC_CODES, QUESTION_RATE_HZ
from aqaa.storage import load_organ, save_organ
from aqaa.tokenizer.codebook import Codebook
from aqaa.tokenizer.sanm import SanmEncoder
from aqaa.tokenizer.whisper import SemanticEncoder

PEAK = 0.999  # the level the released tokenizers were given
PIECE_SAMPLES = 30 * QUESTION_RATE_HZ
SHORTEST_PIECE_SAMPLES = 480  # a rest below this gives no code


class CodeStream(Protocol):
    """Sound in, codes out as soon as they are certain."""

    def push(self, samples: Tensor) -> list[int]:
        """Take the next samples (T,); codes that are now certain."""
        ...

    def finish(self) -> list[int]:
        """The sound has ended; the codes still owed."""
        ...


class LinguisticTokenizer(nn.Module):
    """Filter banks, their normalisation, the streaming encoder, and the centres of its clusters.

    Args:
        codes: size of the book.
        encoder: settings of the :class:`SanmEncoder`.
    """

    book = "linguistic"
    peak = PEAK
    shift: Tensor
    scale: Tensor

    def __init__(self, *, codes: int = LINGUISTIC_CODES, encoder: dict[str, int]) -> None:
        super().__init__()
        self.settings = {"codes": codes, "encoder": dict(encoder)}
        self.encoder = SanmEncoder(**encoder)
        self.codebook = Codebook(codes=codes, width=self.encoder.width)
        self.register_buffer("shift", torch.zeros(FRAME_WIDTH))
        self.register_buffer("scale", torch.ones(FRAME_WIDTH))

    def normalise(self, frames: Tensor) -> Tensor:
        """Stacked filter banks (..., I) as the encoder was trained on them."""
        return (frames + self.shift) * self.scale

    def stream(self) -> CodeStream:
        """Begin a clip."""
        return LinguisticStream(self)

    def encode_sound(self, samples: Tensor) -> list[int]:
        """Codes of one mono clip (T,) at 16 kHz."""
        stream = self.stream()
        return [*stream.push(samples), *stream.finish()]

    @torch.no_grad()
    def vectors(self, clips: list[Tensor]) -> list[Tensor]:
        """What the encoder says of clips (T,), in one batch: (N, W) each.

        For starting the codebook and for extraction by the batch; the same as a stream's up to
        rounding.
        """
        found = [self.normalise(linguistic_frontend(clip)) for clip in clips]
        lengths = torch.tensor([len(frames) for frames in found])
        if not int(lengths.max()):
            return [frames.new_zeros(0, self.encoder.width) for frames in found]
        padded = nn.utils.rnn.pad_sequence(found, batch_first=True)
        encoded = self.encoder(padded, lengths.to(padded.device))
        return [row[:length] for row, length in zip(encoded, lengths.tolist(), strict=True)]

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, the numbers as ``dtype`` where one is given."""
        save_organ(folder, "LinguisticTokenizer", self.settings, self.state_dict(), dtype)

    @classmethod
    def load(cls, folder: str | Path) -> "LinguisticTokenizer":
        """Read a folder of :meth:`save`, in evaluation mode."""
        return load_organ(folder, cls)


class LinguisticStream:
    """One clip on its way through a :class:`LinguisticTokenizer`, block by block of 240 ms."""

    def __init__(self, tokenizer: LinguisticTokenizer) -> None:
        self._tokenizer = tokenizer
        self._state = tokenizer.encoder.start(1)
        self._held = torch.zeros(0)
        self._context = 0  # samples at the head of those held that were heard before
        self._samples, self._frames = 0, 0

    def push(self, samples: Tensor) -> list[int]:
        """Take the next samples (T,); the codes of every block they complete."""
        self._held = torch.cat([self._held, samples.float().cpu()])
        self._samples += len(samples)
        codes = []
        while len(self._held) - self._context >= BLOCK_SAMPLES:
            end = self._context + BLOCK_SAMPLES
            codes += self._encode(self._held[:end], BLOCK_FRAMES)
            self._held = self._held[end - CONTEXT_SAMPLES :]
            self._context = CONTEXT_SAMPLES
        return codes

    def finish(self) -> list[int]:
        """The codes of the last block, unless it is too short for any."""
        owed = stacked_frames(self._samples) - self._frames
        return self._encode(self._held, owed) if owed else []

    @torch.no_grad()
    def _encode(self, samples: Tensor, count: int) -> list[int]:
        tokenizer = self._tokenizer
        frames = stack_frames(fbank(samples), count, opening=not self._frames)
        self._frames += count
        feats = tokenizer.normalise(frames.to(tokenizer.shift.device))[None]
        vectors = tokenizer.encoder.encode_chunk(feats, self._state)
        codes: list[int] = tokenizer.codebook.search(vectors)[0].tolist()
        return codes


class SemanticTokenizer(nn.Module):
    """Whisper's log-mel and a :class:`SemanticEncoder` over pieces of 30 s.

    Args:
        network: settings of the encoder.
    """

    book = "semantic"
    peak = PEAK

    def __init__(self, *, network: dict[str, int]) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"network": dict(network)}
        self.network = SemanticEncoder(**network)

    @property
    def codebook(self) -> Codebook:
        """The book in the encoder's middle."""
        return self.network.codebook

    def stream(self) -> CodeStream:
        """Begin a clip."""
        return PieceStream(self._encode_piece)

    def encode_sound(self, samples: Tensor) -> list[int]:
        """Codes of one mono clip (T,) at 16 kHz."""
        stream = self.stream()
        return [*stream.push(samples), *stream.finish()]

    @torch.no_grad()
    def _encode_piece(self, samples: Tensor) -> list[int]:
        bins = self.network.encoder.conv1.in_channels
        mel = whisper_mel(samples.to(self.codebook.vectors.device), bins=bins)
        found = self.network(mel[None], torch.tensor([mel.shape[1]], device=mel.device))
        codes: list[int] = found.codes[0].tolist()
        return codes

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, the numbers as ``dtype`` where one is given."""
        save_organ(folder, "SemanticTokenizer", self.settings, self.state_dict(), dtype)

    @classmethod
    def load(cls, folder: str | Path) -> "SemanticTokenizer":
        """Read a folder of :meth:`save`, in evaluation mode."""
        return load_organ(folder, cls)


class PieceStream:
    """Holds sound back until a piece of 30 s is full: its codes depend on all of it."""

    def __init__(self, encode: Callable[[Tensor], list[int]]) -> None:
        self._encode = encode
        self._held = torch.zeros(0)

    def push(self, samples: Tensor) -> list[int]:
        """Take the next samples (T,); the codes of every piece they complete."""
        self._held = torch.cat([self._held, samples.float().cpu()])
        codes = []
        while len(self._held) >= PIECE_SAMPLES:
            codes += self._encode(self._held[:PIECE_SAMPLES])
            self._held = self._held[PIECE_SAMPLES:]
        return codes

    def finish(self) -> list[int]:
        """The codes of the last piece, unless it is too short for any."""
        return self._encode(self._held) if len(self._held) >= SHORTEST_PIECE_SAMPLES else []
