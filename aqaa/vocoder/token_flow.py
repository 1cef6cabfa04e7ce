"""Audio tokens to a log-mel at full size: the flow of CosyVoice 1 as Step-Audio uses it.

Both books lie interleaved in one stream (aqaa.vocabulary.interleaved), which is embedded, read by
a transformer, projected to mel bins, stretched to mel frames; what comes of it conditions an
optimal-transport flow. A speaker vector and the mel of a prompt may condition it as well.
Letters: B clips, N tokens, P prompt tokens, M mel bins, F mel frames, S speaker width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqaa.errors import UsageError
from aqaa.losses.flow_matching import flow_matching, path
from aqaa.signals import (
    AUDIO_TOKEN_RATE_HZ,
    MEL_BINS,
    VOCODER_HOP_SAMPLES,
    VOCODER_RATE_HZ,
)
from aqaa.storage import load_organ, save_organ
from aqaa.vocoder.draw import Draw
from aqaa.vocoder.encoder import TokenEncoder
from aqaa.vocoder.estimator import Estimator
from aqaa.vocoder.regulator import LengthRegulator, stretch
from aqaa.vocoder.solver import Solver, follow, named

TOKEN_RATE_HZ = float(AUDIO_TOKEN_RATE_HZ)


class Condition(NamedTuple):
    """What the flow is told: ``text`` (B, M, F), ``speaker`` (B, M), ``prompt`` (B, M, F).

    Zeros say nothing; training drops all three together, so the network knows them.
    """

    text: Tensor
    speaker: Tensor
    prompt: Tensor


class TokenFlow(nn.Module):
    """Embedding, encoder, length regulator and velocity network.

    Args:
        tokens: rows of the embedding, 5120 or more for both books.
        encoder: settings of :class:`TokenEncoder`.
        estimator: settings of :class:`Estimator` but its channels in and out.
        mel_bins, speaker_width: as named.
        regulator_layers: of the length regulator.
        token_rate_hz: tokens a second.
    """

    def __init__(
        self,
        *,
        tokens: int = 5121,
        encoder: dict[str, Any] | None = None,
        estimator: dict[str, Any] | None = None,
        mel_bins: int = MEL_BINS,
        speaker_width: int = 192,
        regulator_layers: int = 4,
        token_rate_hz: float = TOKEN_RATE_HZ,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "tokens": tokens,
            "encoder": dict(encoder or {}),
            "estimator": dict(estimator or {}),
            "mel_bins": mel_bins,
            "speaker_width": speaker_width,
            "regulator_layers": regulator_layers,
            "token_rate_hz": token_rate_hz,
        }
        self.mel_bins, self.token_rate_hz = mel_bins, token_rate_hz
        self.encoder = TokenEncoder(**(encoder or {}))
        code_width = self.encoder.embed.out[0].in_features  # type: ignore[index, union-attr]
        self.input_embedding = nn.Embedding(tokens, int(code_width))
        self.spk_embed_affine_layer = nn.Linear(speaker_width, mel_bins)
        self.encoder_proj = nn.Linear(self.encoder.width, mel_bins)
        self.length_regulator = LengthRegulator(channels=mel_bins, layers=regulator_layers)
        network = Estimator(
            channels_in=4 * mel_bins, channels_out=mel_bins, **(estimator or {})
        )
        self.decoder = nn.ModuleDict({"estimator": network})

    def frames(self, token_count: int) -> int:
        """Mel frames that so many tokens last."""
        return int(token_count / self.token_rate_hz * VOCODER_RATE_HZ / VOCODER_HOP_SAMPLES)

    def encode(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N) ids, mask (B, N) or None -> what each token says, (B, M, N)."""
        x = self.input_embedding(tokens)
        return self.encoder_proj(self.encoder(x, mask)).transpose(1, 2)

    def voice(self, speaker: Tensor | None, batch: int) -> Tensor:
        """Speaker vectors (B, S) of any length -> (B, M); zeros, which say nothing, for None."""
        if speaker is None:
            return self.encoder_proj.bias.new_zeros(batch, self.mel_bins)
        voice: Tensor = self.spk_embed_affine_layer(F.normalize(speaker, dim=1))
        return voice

    def velocity(
        self, point: Tensor, condition: Condition, time: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """(B, M, F), condition, (B,) or (1,), mask (B, 1, F) or None -> (B, M, F)."""
        speaker = condition.speaker[..., None].expand_as(point)
        x = torch.cat([point, condition.text, speaker, condition.prompt], 1)
        out: Tensor = self.decoder["estimator"](x, time, mask)
        return out

    def forward(
        self,
        tokens: Tensor,
        mel: Tensor,
        *,
        token_counts: Sequence[int],
        frame_counts: Sequence[int],
        draw: Draw,
        speaker: Tensor | None = None,
        heard: Tensor | None = None,
        prompt_in_loss: bool = True,
    ) -> Tensor:
        """Training loss: the mean squared error of the velocity over real frames.

        Args:
            tokens: (B, N), any valid id behind an item's end.
            mel: (B, M, F), anything finite behind an item's end.
            token_counts: real tokens of each item; the longest fills the tensor.
            frame_counts: the same of the mel.
            draw: what chance decided for this batch.
            speaker: (B, S) or None.
            heard: (B,), 0 where an item is not told its speaker; None where all are.
            prompt_in_loss: count the frames that a prompt gives away too.

        Returns:
            A scalar, which padding does not change.
        """
        text = self.encode(tokens, real(token_counts, tokens.shape[1], tokens.device))
        mask = real(frame_counts, mel.shape[2], mel.device)
        channels_mask = None if mask is None else mask[:, None]
        text = self.length_regulator(stretch(text, token_counts, frame_counts), channels_mask)
        place = torch.arange(mel.shape[2], device=mel.device)
        given = place < draw.prompt_frames[:, None]
        keep = draw.keep[:, None].to(mel.dtype)
        voice, prompt = self.voice(speaker, len(mel)), mel * given[:, None]
        if heard is not None:
            voice = voice * heard[:, None]
        condition = Condition(text * keep[..., None], voice * keep, prompt * keep[..., None])
        point, target = path(draw.noise, mel, draw.time)
        velocity = self.velocity(point, condition, draw.time, channels_mask)
        counted = mel.new_ones(len(mel), mel.shape[2]) if mask is None else mask
        if not prompt_in_loss:
            counted = counted * ~(given & draw.keep[:, None].bool())
        return flow_matching(velocity, target, counted)

    @torch.no_grad()
    def sample(
        self,
        tokens: Tensor,
        *,
        prompt_tokens: Tensor | None = None,
        prompt_mel: Tensor | None = None,
        speaker: Tensor | None = None,
        noise: Tensor | None = None,
        steps: int = 10,
        guidance: float = 0.7,
        solver: str = "euler",
    ) -> Tensor:
        """Solve the flow; the defaults are the released vocoder's.

        Args:
            tokens: (B, N) ids to be said; items of one length.
            prompt_tokens: (B, P) ids of what the prompt says; with ``prompt_mel`` or not at all.
            prompt_mel: (B, M, Fp), how the prompt sounds; the voice goes on like it.
            speaker: (B, S), or None for no one in particular.
            noise: (B, M, Fp + Fn) start; None draws one.
            steps: calls of the network.
            guidance: how far to go away from the field that knows no condition; 0 spares its calls.
            solver: one of :data:`aqaa.vocoder.solver.SOLVERS`.

        Returns:
            Log-mel (B, M, Fn) of ``tokens`` alone, Fn = ``frames(N)``.

        Raises:
            UsageError: shapes that do not fit, ids outside the table, numbers that are not finite.
        """
        self._check_tokens(tokens, "tokens")
        batch, frames = len(tokens), self.frames(tokens.shape[1])
        prompt = self._prompt(prompt_tokens, prompt_mel, batch)
        before = prompt.shape[2]
        size = (batch, self.mel_bins, before + frames)
        if speaker is not None:
            _check(speaker, (batch, self.spk_embed_affine_layer.in_features), "speaker")
        if noise is None:
            noise = torch.randn(size, device=tokens.device, dtype=prompt.dtype)
        _check(noise, size, "noise")
        if steps < 1 or frames < 1:
            raise UsageError(f"{steps} steps to {frames} frames: both must be at least 1")
        way = named(solver, steps)
        text = self._stretched(tokens, prompt_tokens, before, frames)
        told = Condition(text, self.voice(speaker, batch), F.pad(prompt, (0, frames)))
        return self._solve(noise, told, way, guidance)[:, :, before:]

    def _stretched(
        self, tokens: Tensor, prompt_tokens: Tensor | None, before: int, frames: int
    ) -> Tensor:
        """Prompt and tokens encoded together, stretched apart: (B, M, before + frames)."""
        batch, prompt_count = len(tokens), 0
        if prompt_tokens is not None and before:
            tokens = torch.cat([prompt_tokens, tokens], 1)
            prompt_count = prompt_tokens.shape[1]
        text = self.encode(tokens, None)
        parts = [(text[:, :, :prompt_count], before), (text[:, :, prompt_count:], frames)]
        text = torch.cat(
            [stretch(p, [p.shape[2]] * batch, [n] * batch) for p, n in parts if n], 2
        )
        out: Tensor = self.length_regulator(text, None)
        return out

    def _solve(self, x: Tensor, told: Condition, way: Solver, guidance: float) -> Tensor:
        """From noise (B, M, F) along the flow; a guided call is one with twice the batch."""
        if guidance:
            told = Condition(*(torch.cat([part, torch.zeros_like(part)]) for part in told))

        def velocity(point: Tensor, time: Tensor) -> Tensor:
            if not guidance:
                return self.velocity(point, told, time)
            guided, free = self.velocity(torch.cat([point, point]), told, time).chunk(2)
            return (1 + guidance) * guided - guidance * free

        return follow(velocity, x, way)

    def _prompt(self, tokens: Tensor | None, mel: Tensor | None, batch: int) -> Tensor:
        """The mel of the prompt, (B, M, Fp), with no frames where there is none."""
        empty = self.encoder_proj.bias.new_zeros(batch, self.mel_bins, 0)
        token_count = 0 if tokens is None else tokens.shape[-1]
        frames = 0 if mel is None else mel.shape[-1]
        if bool(token_count) != bool(frames):
            raise UsageError(
                f"a prompt of {token_count} tokens and {frames} mel frames: give both or none"
            )
        if tokens is None or mel is None or not frames:
            return empty
        self._check_tokens(tokens, "prompt_tokens", batch)
        _check(mel, (batch, self.mel_bins, frames), "prompt_mel")
        return mel.to(empty.dtype)

    def _check_tokens(self, tokens: Tensor, name: str, batch: int | None = None) -> None:
        """Refuse what is not a (B, N) tensor of ids in the table."""
        if tokens.dim() != 2 or not tokens.numel() or tokens.is_floating_point():
            raise UsageError(
                f"{name} must be ids (B, N), at least one: got {tokens.dtype} {tuple(tokens.shape)}"
            )
        if batch is not None and len(tokens) != batch:
            raise UsageError(f"{name} has {len(tokens)} items, tokens has {batch}")
        low, high, rows = int(tokens.min()), int(tokens.max()), self.input_embedding.num_embeddings
        if low < 0 or high >= rows:
            wrong = low if low < 0 else high
            raise UsageError(f"{name} holds the id {wrong}: the table has ids 0..{rows - 1}")

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, the numbers as ``dtype`` where one is given."""
        save_organ(folder, "TokenFlow", self.settings, self.state_dict(), dtype)

    @classmethod
    def load(cls, folder: str | Path) -> "TokenFlow":
        """Read a folder of :meth:`save`, in evaluation mode."""
        return load_organ(folder, cls)


def real(counts: Sequence[int], size: int, device: torch.device) -> Tensor | None:
    """Mask (B, size) of the first ``counts`` places; None where all are real."""
    if max(counts) != size or min(counts) < 1:
        raise UsageError(f"counts {list(counts)} do not fit a tensor of length {size}")
    if min(counts) == size:
        return None
    places = torch.arange(size, device=device)
    return (places < torch.tensor(list(counts), device=device)[:, None]).float()


def _check(value: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Refuse another shape and numbers that are not finite."""
    if tuple(value.shape) != shape:
        raise UsageError(f"{name} has the shape {tuple(value.shape)}, not {shape}")
    if not bool(value.isfinite().all()):
        raise UsageError(f"{name} holds NaN or infinity")
