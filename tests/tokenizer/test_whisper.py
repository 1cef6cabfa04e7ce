"""The semantic encoder against its definition in loops, alone and in a batch."""

import math

import pytest
import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.tokenizer.whisper import SemanticEncoder
from tests.golden.make import WHISPER, whisper

WIDTH, HEADS = WHISPER["width"], WHISPER["heads"]
MEL = torch.randn(3, 128, 57, generator=torch.Generator().manual_seed(0))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def slow_encoder(network: SemanticEncoder, mel: Tensor) -> Tensor:
    """(128, F) -> (T, W) in float64."""
    s = {k: v.double() for k, v in network.encoder.state_dict().items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean()
        return centred / (centred.pow(2).mean() + 1e-5).sqrt() * s[f"{name}.weight"] + s[
            f"{name}.bias"
        ]

    def linear(x: Tensor, name: str) -> Tensor:
        return s[f"{name}.weight"] @ x + s.get(f"{name}.bias", torch.zeros(1, dtype=x.dtype))

    columns = list(mel.double().T)
    for name in ("conv1", "conv2"):
        kernel, moved = s[f"{name}.weight"], []
        for middle in range(0, len(columns), 2):
            total = s[f"{name}.bias"].clone()
            for tap in range(3):
                if 0 <= middle + tap - 1 < len(columns):
                    total += kernel[:, :, tap] @ columns[middle + tap - 1]
            moved.append(gelu(total))
        columns = moved
    rows = [c + s["positional_embedding"][i] for i, c in enumerate(columns)]
    for block in range(WHISPER["blocks"]):
        name = f"blocks.{block}"
        normed = [norm(r, f"{name}.attn_ln") for r in rows]
        parts = ("query", "key", "value")
        q, k, v = ([linear(n, f"{name}.attn.{part}") for n in normed] for part in parts)
        for i, row in enumerate(rows):
            heads = []
            for head in range(HEADS):
                part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
                scores = torch.stack([q[i][part] @ key[part] for key in k])
                weights = torch.softmax(scores / math.sqrt(WIDTH // HEADS), 0)
                heads.append(sum(w * val[part] for w, val in zip(weights, v, strict=True)))
            rows[i] = row + linear(torch.cat(heads), f"{name}.attn.out")
        rows = [
            r + linear(gelu(linear(norm(r, f"{name}.mlp_ln"), f"{name}.mlp.0")), f"{name}.mlp.2")
            for r in rows
        ]
    return torch.stack(rows)


@torch.no_grad()
def test_hidden_and_codes_against_a_loop() -> None:
    network = whisper()
    found = network(MEL[:1, :, :29], torch.tensor([29]))
    hidden = slow_encoder(network, MEL[0, :, :29])
    torch.testing.assert_close(found.hidden[0], hidden.float(), rtol=0, atol=1e-4)
    unit = hidden / hidden.norm(dim=-1, keepdim=True)
    distances = [[float((u - c).norm()) for c in network.codebook.vectors] for u in unit]
    assert found.codes[0].tolist() == [row.index(min(row)) for row in distances]
    assert len(set(found.codes[0].tolist())) > 1


@torch.no_grad()
def test_clips_alone_and_padded_together() -> None:
    network, frames = whisper(), [57, 30, 5]
    loud = MEL.clone()
    loud[1, :, 30:] = 50
    loud[2, :, 5:] = -50
    together = network(loud, torch.tensor(frames))
    assert together.lengths.tolist() == [15, 8, 2]
    for i, (count, length) in enumerate(zip(frames, together.lengths.tolist(), strict=True)):
        alone = network(MEL[i : i + 1, :, :count], torch.tensor([count]))
        torch.testing.assert_close(together.hidden[i, :length], alone.hidden[0], rtol=0, atol=1e-5)
        assert together.codes[i, :length].tolist() == alone.codes[0].tolist()


def test_positions_are_sines_and_cosines() -> None:
    table = SemanticEncoder(**WHISPER).encoder.positional_embedding
    for place, row in enumerate(table[:9]):
        angles = [place * 10_000 ** (-k / 3) for k in range(4)]
        assert row.tolist() == pytest.approx(
            [f(a) for f in (math.sin, math.cos) for a in angles], abs=1e-4
        )


def test_every_parameter_learns() -> None:
    network = whisper().train()
    network(MEL, torch.tensor([57, 30, 5])).hidden.pow(2).sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_clip_beyond_the_positions_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="164 mel frames need 41 positions, the encoder has 40"):
        whisper()(torch.zeros(1, 128, 164), torch.tensor([164]))
    with pytest.raises(UsageError, match="width 8 is not a multiple of 3 heads"):
        SemanticEncoder(**{**WHISPER, "heads": 3})
