"""The streaming encoder against its definition in loops, chunk by chunk and all at once."""

import math

import pytest
import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.tokenizer.sanm import SanmEncoder
from tests.golden.make import SANM, randomise, sanm

WIDTH, HEADS, KERNEL, BEFORE, KEPT = SANM["width"], SANM["heads"], SANM["kernel"], 5, 16


def features(frames: int, clips: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(clips, frames, 560, generator=generator)


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean()
    scaled = centred / (centred.pow(2).mean() + 1e-12).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return state[f"{name}.weight"] @ x + state[f"{name}.bias"]


def attention(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """One query (W,) over rows, head by head."""
    heads = []
    for head in range(HEADS):
        part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        scores = [float(q[part] @ k[part]) / math.sqrt(WIDTH // HEADS) for k in keys]
        weights = [math.exp(s - max(scores)) for s in scores]
        heads.append(
            sum(w * v[part] for w, v in zip(weights, values, strict=True)) / sum(weights)
        )
    return torch.cat(heads)


def slow_block(
    rows: list[Tensor], state: dict[str, Tensor], name: str, cache: list[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    attn, out = f"{name}.self_attn", []
    qkv = [linear(norm(r, state, f"{name}.norm1"), state, f"{attn}.linear_q_k_v") for r in rows]
    q, k, v = ([r[i * WIDTH : (i + 1) * WIDTH] for r in qkv] for i in range(3))
    keys, values = [k0 for k0, _ in cache] + k, [v0 for _, v0 in cache] + v
    kernel = state[f"{attn}.fsmn_block.weight"][:, 0]
    for n, row in enumerate(rows):
        memory = v[n].clone()
        for tap in range(KERNEL):
            place = n + tap - KERNEL // 2
            if 0 <= place < len(rows):
                memory += kernel[:, tap] * v[place]
        heard = linear(attention(q[n], keys, values), state, f"{attn}.linear_out") + memory
        x = row + heard if len(row) == WIDTH else heard
        inner = linear(norm(x, state, f"{name}.norm2"), state, f"{name}.feed_forward.w_1")
        out.append(x + linear(inner.clamp(min=0), state, f"{name}.feed_forward.w_2"))
    cache += list(zip(k, v, strict=True))[:-BEFORE]
    del cache[:-KEPT]
    return out


def slow_encoder(encoder: SanmEncoder, feats: Tensor, chunk_frames: list[int]) -> Tensor:
    """(F, 560) -> (F, W) in float64."""
    state = {k: v.double() for k, v in encoder.state_dict().items()}
    before = [torch.zeros(560, dtype=torch.float64)] * BEFORE
    caches: list[list[tuple[Tensor, Tensor]]] = [[], []]
    found, place = [], 0
    for count in chunk_frames:
        new = []
        for frame in feats[place : place + count].double():
            place += 1
            angles = [place * 10_000 ** (-k / 279) for k in range(280)]
            table = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            new.append(frame * math.sqrt(WIDTH) + torch.tensor(table, dtype=torch.float64))
        rows = before + new
        before = rows[-BEFORE:]
        for name, cache in zip(("encoders0.0", "encoders.0"), caches, strict=True):
            rows = slow_block(rows, state, name, cache)
        found += [norm(r, state, "after_norm") for r in rows[BEFORE:]]
    return torch.stack(found).float()


@pytest.mark.parametrize("chunk_frames", [[4] * 7 + [2], [1, 2, 3, 4, 4, 3, 4, 4], [3]])
def test_chunks_against_a_loop(chunk_frames: list[int]) -> None:
    encoder, feats = sanm(), features(sum(chunk_frames))
    with torch.no_grad():
        found = encoder.encode_chunks(feats, chunk_frames)[0]
    torch.testing.assert_close(
        found, slow_encoder(encoder, feats[0], chunk_frames), rtol=0, atol=1e-4
    )


def test_all_chunks_at_once_are_the_chunks_one_by_one() -> None:
    encoder, lengths = sanm(), [38, 21, 4, 1]
    feats = features(38, clips=4)
    with torch.no_grad():
        together = encoder(feats, torch.tensor(lengths))
        for row, clip, length in zip(together, feats, lengths, strict=True):
            chunks = [4] * (length // 4) + [length % 4] * (length % 4 > 0)
            alone = encoder.encode_chunks(clip[None, :length], chunks)[0]
            torch.testing.assert_close(row[:length], alone, rtol=0, atol=1e-5)


def test_what_lies_behind_a_clip_is_not_heard() -> None:
    encoder, lengths = sanm(), torch.tensor([9])
    feats = features(16)
    loud = feats.clone()
    loud[:, 9:] = 50
    with torch.no_grad():
        assert torch.equal(encoder(feats, lengths)[:, :9], encoder(loud, lengths)[:, :9])


def test_nothing_looks_ahead() -> None:
    encoder, feats = sanm(), features(60)
    with torch.no_grad():
        plain = encoder.encode_chunks(feats, [4] * 15)
        later = feats.clone()
        later[:, 32:] *= -1
        moved = encoder.encode_chunks(later, [4] * 15)
    assert torch.equal(plain[:, :32], moved[:, :32])
    assert not torch.allclose(plain[:, 32:36], moved[:, 32:36])


def test_every_parameter_learns() -> None:
    encoder = randomise(SanmEncoder(**SANM)).train()
    encoder(features(14, clips=2), torch.tensor([14, 9])).pow(2).sum().backward()
    # The keys' own bias moves every score of a query alike, so nothing can be learned of it.
    silent = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("chunk_frames", [[4, 4], [4, 4, 4], [10, 0], []])
def test_chunks_that_do_not_add_up_are_refused(chunk_frames: list[int]) -> None:
    with pytest.raises(UsageError, match="do not make up the 10 given"):
        sanm().encode_chunks(features(10), chunk_frames)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="width 8 is not a multiple of 3 heads"):
        SanmEncoder(**{**SANM, "heads": 3})
    with pytest.raises(UsageError, match="a memory of 4 frames has no middle"):
        SanmEncoder(**{**SANM, "kernel": 4})
