"""The linguistic encoder: self-attention with a memory, in chunks of 240 ms (Zhang 2020, SCAMA).

A chunk is heard together with the five frames before it; its keys and values are joined by those
of the four chunks before. Nothing looks ahead, so a stream and a whole clip give the same. Names of
the parameters are those of the released Paraformer.
Letters: B clips, F frames of 60 ms, I input width, W width, M frames attended to, C chunks,
G clips times chunks, R rows of a chunk's window (five and the chunk's own).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqaa.errors import UsageError

CHUNK_FRAMES = 4
BEFORE_FRAMES = 5  # heard again with every chunk
LOOK_BACK_CHUNKS = 4
_WAVELENGTH = 10_000.0

# Takes keys and values of a window, gives those to attend to and which of them are real.
Recall = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]


@dataclass
class Memory:
    """Keys and values (B, M, W) of one block's earlier chunks."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def recall(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, None]:
        """Put what is remembered before (B, R, W), and remember the rows that will not return."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], 1), torch.cat([self.values, values], 1)
        kept = LOOK_BACK_CHUNKS * CHUNK_FRAMES
        self.keys = keys[:, :-BEFORE_FRAMES][:, -kept:]
        self.values = values[:, :-BEFORE_FRAMES][:, -kept:]
        return keys, values, None


@dataclass
class SanmState:
    """Where a stream stands: its ``position``, the last frames (B, 5, I), every block's memory."""

    frames: Tensor
    memories: list[Memory] = field(default_factory=list)
    position: int = 0


class SanmAttention(nn.Module):
    """Attention plus a depthwise convolution over the values of the window."""

    def __init__(self, *, in_width: int, width: int, heads: int, kernel: int) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"width {width} is not a multiple of {heads} heads")
        if not kernel % 2:
            raise UsageError(f"a memory of {kernel} frames has no middle: give an odd number")
        self.heads = heads
        self.linear_q_k_v = nn.Linear(in_width, 3 * width)
        self.linear_out = nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(
            width, width, kernel, padding=kernel // 2, groups=width, bias=False
        )

    def forward(self, x: Tensor, recall: Recall, real: Tensor | None = None) -> Tensor:
        """(G, R, I), real rows (G, R) -> (G, R, W)."""
        q, k, v = self.linear_q_k_v(x).chunk(3, -1)
        kept = v if real is None else v * real[..., None]
        memory = self.fsmn_block(kept.transpose(1, 2)).transpose(1, 2) + kept
        keys, values, seen = recall(k, v)
        heard = F.scaled_dot_product_attention(
            self._by_head(q), self._by_head(keys), self._by_head(values), attn_mask=seen
        )
        return self.linear_out(heard.transpose(1, 2).flatten(2)) + memory

    def _by_head(self, x: Tensor) -> Tensor:
        """(G, M, W) -> (G, H, M, W / H)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SanmFeedForward(nn.Module):
    """Two linear maps with a rectifier between."""

    def __init__(self, *, width: int, inner: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, inner)
        self.w_2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        return self.w_2(F.relu(self.w_1(x)))


class SanmBlock(nn.Module):
    """Pre-norm attention and feed-forward; nothing goes round a width that changes."""

    def __init__(
        self, *, in_width: int, width: int, heads: int, inner: int, kernel: int
    ) -> None:
        super().__init__()
        self.self_attn = SanmAttention(in_width=in_width, width=width, heads=heads, kernel=kernel)
        self.feed_forward = SanmFeedForward(width=width, inner=inner)
        self.norm1 = nn.LayerNorm(in_width, eps=1e-12)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, recall: Recall, real: Tensor | None = None) -> Tensor:
        """(G, R, I), real rows (G, R) -> (G, R, W)."""
        heard = self.self_attn(self.norm1(x), recall, real)
        x = x + heard if x.shape == heard.shape else heard
        return x + self.feed_forward(self.norm2(x))


class SanmEncoder(nn.Module):
    """Normalised stacked filter banks to one vector every 60 ms."""

    def __init__(
        self,
        *,
        in_width: int = 560,
        width: int = 512,
        blocks: int = 50,
        heads: int = 4,
        inner: int = 2048,
        kernel: int = 11,
    ) -> None:
        super().__init__()
        build = partial(SanmBlock, width=width, heads=heads, inner=inner, kernel=kernel)
        self.in_width = in_width
        self.width = width
        self.encoders0 = nn.ModuleList([build(in_width=in_width)])
        self.encoders = nn.ModuleList(build(in_width=width) for _ in range(blocks - 1))
        self.after_norm = nn.LayerNorm(width, eps=1e-12)

    @property
    def blocks(self) -> list[nn.Module]:
        """Every block in order."""
        return [*self.encoders0, *self.encoders]

    def start(self, clips: int) -> SanmState:
        """The state before the first chunk of so many clips."""
        frames = self.after_norm.weight.new_zeros(clips, BEFORE_FRAMES, self.in_width)
        return SanmState(frames, [Memory() for _ in self.blocks])

    def encode_chunk(self, feats: Tensor, state: SanmState) -> Tensor:
        """Encode the next chunk (B, F, I) of a stream, whose state moves on; (B, F, W)."""
        x = torch.cat([state.frames, self._placed(feats, state.position)], 1)
        state.frames = x[:, -BEFORE_FRAMES:]
        state.position += feats.shape[1]
        for block, memory in zip(self.blocks, state.memories, strict=True):
            x = block(x, memory.recall)
        return self.after_norm(x[:, BEFORE_FRAMES:])

    def encode_chunks(self, feats: Tensor, chunk_frames: Sequence[int]) -> Tensor:
        """Encode (B, F, I) as a stream would that brings so many frames at a time; (B, F, W)."""
        if sum(chunk_frames) != feats.shape[1] or min(chunk_frames, default=1) < 1:
            raise UsageError(
                f"chunks of {list(chunk_frames)} frames do not make up the {feats.shape[1]} given"
            )
        if not len(chunk_frames):
            return feats.new_zeros(len(feats), 0, self.width)
        state = self.start(len(feats))
        parts = feats.split(list(chunk_frames), 1)
        return torch.cat([self.encode_chunk(part, state) for part in parts], 1)

    def forward(self, feats: Tensor, lengths: Tensor) -> Tensor:
        """Encode whole clips with all their chunks of four at once, as training wants it.

        Args:
            feats: (B, F, I), F at least 1; what lies behind a clip's length is not heard.
            lengths: (B,) frames of each clip.

        Returns:
            (B, F, W), the numbers of :meth:`encode_chunks` by fours up to rounding.
        """
        clips, frames, _ = feats.shape
        chunks = -(-frames // CHUNK_FRAMES)
        places = torch.arange(chunks * CHUNK_FRAMES, device=feats.device)
        inside = places < lengths[:, None]
        x = F.pad(self._placed(feats, 0), (0, 0, 0, len(places) - frames))
        # Zeros stand before the first frame and are heard; what lies behind the last is not.
        x = _windows(F.pad(x * inside[..., None], (0, 0, BEFORE_FRAMES, 0)))
        real = _windows(F.pad(inside, (BEFORE_FRAMES, 0), value=True)[..., None])[..., 0]
        recall = partial(_recall_chunks, clips=clips, real=real)
        for block in self.blocks:
            x = block(x, recall, real)
        own = x[:, BEFORE_FRAMES:].reshape(clips, len(places), -1)
        return self.after_norm(own[:, :frames])

    def _placed(self, feats: Tensor, position: int) -> Tensor:
        """Scaled features (B, F, I) with their places in the clip added."""
        places = _sinusoids(position + 1, feats.shape[1], self.in_width, feats.device)
        return feats * self.width**0.5 + places.to(feats.dtype)


def _sinusoids(first: int, count: int, width: int, device: torch.device) -> Tensor:
    """(count, width): sines, then cosines, of the places from ``first`` on."""
    step = math.log(_WAVELENGTH) / (width // 2 - 1)
    rates = torch.exp(torch.arange(width // 2, device=device) * -step)
    angles = torch.arange(first, first + count, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def _windows(x: Tensor) -> Tensor:
    """(B, 5 + 4 C, D) -> (B C, 9, D): every chunk with the five rows before it."""
    rows = BEFORE_FRAMES + CHUNK_FRAMES
    return x.unfold(1, rows, CHUNK_FRAMES).flatten(0, 1).transpose(1, 2)


def _recall_chunks(
    keys: Tensor, values: Tensor, *, clips: int, real: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What each chunk of whole clips attends to: rows that left the four chunks before, its own.

    Keys and values are (G, R, W), ``real`` (G, R); gives M = 16 + R of each and (G, 1, 1, M).
    """
    chunks = len(real) // clips
    number = torch.arange(chunks, device=real.device).repeat(clips)
    back = torch.arange(LOOK_BACK_CHUNKS, 0, -1, device=real.device).repeat_interleave(CHUNK_FRAMES)
    seen = torch.cat([number[:, None] >= back, real], 1)
    return _joined(keys, clips), _joined(values, clips), seen[:, None, None]


def _joined(x: Tensor, clips: int) -> Tensor:
    """(G, R, W) -> (G, 16 + R, W): the leaving rows of the four chunks before come first."""
    leaving = x.unflatten(0, (clips, -1))[:, :, :CHUNK_FRAMES]
    padded = F.pad(leaving, (0, 0, 0, 0, LOOK_BACK_CHUNKS, 0))[:, :-1]
    earlier = padded.unfold(1, LOOK_BACK_CHUNKS, 1).permute(0, 1, 4, 2, 3)
    return torch.cat([earlier.flatten(2, 3).flatten(0, 1), x], 1)
