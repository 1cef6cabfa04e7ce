"""The full-size flow: its sampler on known fields, its loss against single items, its errors."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aqaa.errors import UsageError
from aqaa.losses.flow_matching import path
from aqaa.vocoder.draw import Draw
from aqaa.vocoder.token_flow import Condition, TokenFlow
from tests.golden.make import token_flow

TOKENS = torch.arange(10)[None] % 7


def prompt(count: int = 4, frames: int = 6) -> dict[str, Tensor]:
    return {"prompt_tokens": torch.arange(count)[None], "prompt_mel": torch.randn(1, 10, frames)}


@pytest.mark.parametrize(("count", "frames"), [(1, 2), (5, 10), (75, 155), (640, 1323)])
def test_tokens_last_as_long_as_they_sound(count: int, frames: int) -> None:
    assert token_flow().frames(count) == frames == int(count * 0.024 * 22050 / 256 + 1e-6)


@torch.no_grad()
def test_the_solver_against_a_loop() -> None:
    flow, steps, guidance = token_flow(), 3, 0.7
    given, speaker = prompt(), torch.randn(1, 5)
    noise = torch.randn(1, 10, 26)
    ids = torch.cat([given["prompt_tokens"], TOKENS], 1)
    text = flow.encoder_proj(flow.encoder(flow.input_embedding(ids), None)).mT
    text = torch.cat(
        [
            F.interpolate(text[:, :, :4], size=6, mode="linear"),
            F.interpolate(text[:, :, 4:], size=20, mode="linear"),
        ],
        2,
    )
    text = flow.length_regulator(text, None)
    voice = flow.spk_embed_affine_layer(speaker / speaker.norm())
    before = torch.cat([given["prompt_mel"], torch.zeros(1, 10, 20)], 2)
    network, x = flow.decoder["estimator"], noise
    for step in range(steps):
        now, after = (1 - math.cos(math.pi / 2 * k / steps) for k in (step, step + 1))
        time = torch.tensor([now])
        told = [x, text, voice[:, :, None].expand(-1, -1, 26), before]
        nothing = [x, *(torch.zeros(1, 10, 26) for _ in range(3))]
        guided, free = network(torch.cat(told, 1), time), network(torch.cat(nothing, 1), time)
        x = x + (after - now) * ((1 + guidance) * guided - guidance * free)
    found = flow.sample(TOKENS, speaker=speaker, noise=noise, steps=steps, guidance=0.7, **given)
    assert found.shape == (1, 10, 20)
    torch.testing.assert_close(found, x[:, :, 6:], rtol=0, atol=2e-5)


@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_a_constant_field_is_solved_exactly(
    guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow, noise, mel = token_flow(), torch.randn(1, 10, 20), torch.randn(1, 10, 20)
    velocity, calls = path(noise, mel, torch.zeros(1))[1], []

    def constant(point: Tensor, told: Condition, time: Tensor, mask: None = None) -> Tensor:
        calls.append(len(point))
        return velocity.expand_as(point)

    monkeypatch.setattr(flow, "velocity", constant)
    found = flow.sample(TOKENS, noise=noise, steps=4, guidance=guidance)
    torch.testing.assert_close(found, mel, rtol=0, atol=1e-5)
    assert calls == [2 if guidance else 1] * 4  # both fields of a step in one call


def test_no_condition_is_zeros() -> None:
    flow = token_flow()
    assert torch.equal(flow.voice(None, 2), torch.zeros(2, 10))
    assert flow.voice(torch.randn(2, 5), 2).any()
    noise = torch.randn(1, 10, 20)
    plain = flow.sample(TOKENS, noise=noise, steps=2)
    empty = {"prompt_tokens": TOKENS[:, :0], "prompt_mel": torch.zeros(1, 10, 0)}
    assert torch.equal(plain, flow.sample(TOKENS, noise=noise, steps=2, **empty))
    given, longer = prompt(), torch.cat([torch.randn(1, 10, 6), noise], 2)
    assert not torch.equal(plain, flow.sample(TOKENS, noise=longer, steps=2, **given))
    speaker = torch.randn(1, 5)
    spoken = flow.sample(TOKENS, noise=noise, steps=2, speaker=speaker)
    assert not torch.equal(plain, spoken)
    louder = flow.sample(TOKENS, noise=noise, steps=2, speaker=7 * speaker)
    torch.testing.assert_close(spoken, louder, rtol=0, atol=1e-5)  # a direction, not a length


def test_items_of_a_batch_do_not_hear_each_other() -> None:
    flow, noise = token_flow(), torch.randn(2, 10, 20)
    tokens = torch.stack([TOKENS[0], TOKENS[0].flip(0)])
    speaker = torch.randn(2, 5)
    together = flow.sample(tokens, noise=noise, speaker=speaker, steps=2)
    for i in range(2):
        one = slice(i, i + 1)
        alone = flow.sample(tokens[one], noise=noise[one], speaker=speaker[one], steps=2)
        torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-5)


def training() -> tuple[Tensor, Tensor, Tensor, Draw]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(24, (3, 9), generator=generator)
    mel, noise = torch.randn(2, 3, 10, 18, generator=generator)
    speaker = torch.randn(3, 5, generator=generator)
    time, keep = torch.tensor([0.1, 0.5, 0.8]), torch.tensor([True, True, False])
    return tokens, mel, speaker, Draw(noise, time, keep, torch.tensor([3, 0, 2]))


@torch.no_grad()
def test_the_loss_of_a_padded_batch_is_the_mean_over_real_frames_of_single_items() -> None:
    flow, (tokens, mel, speaker, draw) = token_flow(), training()
    token_counts, frame_counts = [9, 5, 7], [18, 11, 13]
    mel[1, :, 11:], draw.noise[2, :, 13:] = 30.0, -30.0
    together = flow(tokens, mel, token_counts=token_counts, frame_counts=frame_counts, draw=draw,
                    speaker=speaker)  # fmt: skip
    total = 0.0
    for i in range(3):
        n, f, one = token_counts[i], frame_counts[i], slice(i, i + 1)
        alone = Draw(draw.noise[one, :, :f], *(part[one] for part in draw[1:]))
        loss = flow(tokens[one, :n], mel[one, :, :f], token_counts=[n], frame_counts=[f],
                    draw=alone, speaker=speaker[one])  # fmt: skip
        total += float(loss) * f
    assert float(together) == pytest.approx(total / sum(frame_counts), rel=1e-5)


def test_gradients_of_a_padded_batch_are_those_of_single_items() -> None:
    token_counts, frame_counts = [9, 5, 7], [18, 11, 13]
    tokens, mel, speaker, draw = training()
    heard = torch.tensor([1.0, 0.0, 1.0])
    mel[1, :, 11:], draw.noise[2, :, 13:], tokens[1, 5:] = 30.0, -30.0, 23
    scored = [15, 11, 13]  # frames that no prompt gives away; the last item's condition is dropped
    flows = [token_flow(tokens=24).train() for _ in range(2)]
    for flow in flows:
        for layer in flow.encoder.encoders:
            layer.dropout = 0.0
        flow.encoder.dropout = 0.0
    given = {"token_counts": token_counts, "frame_counts": frame_counts, "prompt_in_loss": False}
    together = flows[0](tokens, mel, draw=draw, speaker=speaker, heard=heard, **given)
    together.backward()
    total = 0.0
    for i in range(3):
        n, f, one = token_counts[i], frame_counts[i], slice(i, i + 1)
        alone = Draw(draw.noise[one, :, :f], *(part[one] for part in draw[1:]))
        loss = flows[1](tokens[one, :n], mel[one, :, :f], token_counts=[n], frame_counts=[f],
                        draw=alone, speaker=speaker[one], heard=heard[one],
                        prompt_in_loss=False)  # fmt: skip
        (loss * scored[i] / sum(scored)).backward()
        total += float(loss.detach()) * scored[i] / sum(scored)
    assert float(together.detach()) == pytest.approx(total, rel=1e-5)
    for (name, a), b in zip(flows[0].named_parameters(), flows[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
def test_who_does_not_hear_the_speaker_is_told_none() -> None:
    flow, (tokens, mel, speaker, draw) = token_flow(), training()
    counts = {"token_counts": [9] * 3, "frame_counts": [18] * 3}
    counts |= {"draw": draw}
    deaf = flow(tokens, mel, speaker=speaker, heard=torch.zeros(3), **counts)
    assert float(deaf) == float(flow(tokens, mel, **counts))
    hearing = flow(tokens, mel, speaker=speaker, heard=torch.ones(3), **counts)
    assert float(hearing) == float(flow(tokens, mel, speaker=speaker, **counts))
    assert float(hearing) != float(deaf)


@torch.no_grad()
def test_the_loss_against_its_formula() -> None:
    flow, (tokens, mel, speaker, draw) = token_flow(), training()
    found = flow(tokens, mel, token_counts=[9] * 3, frame_counts=[18] * 3, draw=draw,
                 speaker=speaker)  # fmt: skip
    errors = []
    for i in range(3):
        text = F.interpolate(flow.encode(tokens[i : i + 1], None), size=18, mode="linear")
        text = flow.length_regulator(text, None)
        voice = flow.voice(speaker[i : i + 1], 1)[:, :, None].expand(1, 10, 18)
        seen = torch.zeros(1, 10, 18)
        seen[0, :, : draw.prompt_frames[i]] = mel[i, :, : draw.prompt_frames[i]]
        told = torch.cat([text, voice, seen], 1) * bool(draw.keep[i])
        t = draw.time[i]
        point = (1 - (1 - 1e-6) * t) * draw.noise[i] + t * mel[i]
        guess = flow.decoder["estimator"](torch.cat([point[None], told], 1), t[None])
        errors.append((guess[0] - (mel[i] - (1 - 1e-6) * draw.noise[i])).pow(2).mean())
    assert float(found) == pytest.approx(float(sum(errors)) / 3, rel=1e-5)


def test_every_parameter_learns_from_the_loss() -> None:
    flow, (tokens, mel, speaker, draw) = token_flow().train(), training()
    flow(tokens, mel, token_counts=[9, 5, 7], frame_counts=[18, 11, 13], draw=draw,
         speaker=speaker).backward()  # fmt: skip
    idle = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


BAD = {
    "no tokens": ({"tokens": TOKENS[:, :0]}, "at least one"),
    "one dimension": ({"tokens": TOKENS[0]}, "ids \\(B, N\\)"),
    "floats": ({"tokens": TOKENS.float()}, "torch.float32"),
    "an id too high": ({"tokens": TOKENS + 20}, "holds the id 26: the table has ids 0..23"),
    "a negative id": ({"tokens": TOKENS - 1}, "holds the id -1"),
    "a prompt without sound": ({"prompt_tokens": TOKENS}, "a prompt of 10 tokens and 0 mel"),
    "a prompt without tokens": ({"prompt_mel": torch.zeros(1, 10, 4)}, "0 tokens and 4 mel"),
    "a narrow prompt": (
        {"prompt_tokens": TOKENS, "prompt_mel": torch.zeros(1, 9, 4)}, "prompt_mel has the shape",
    ),
    "two prompts": (
        {"prompt_tokens": TOKENS.expand(2, -1), "prompt_mel": torch.zeros(2, 10, 4)},
        "prompt_tokens has 2 items",
    ),
    "NaN in a prompt": (
        {"prompt_tokens": TOKENS, "prompt_mel": torch.full((1, 10, 4), torch.nan)},
        "prompt_mel holds NaN",
    ),
    "a speaker too wide": ({"speaker": torch.zeros(1, 6)}, "speaker has the shape"),
    "NaN in a speaker": ({"speaker": torch.full((1, 5), torch.nan)}, "speaker holds NaN"),
    "too little noise": ({"noise": torch.zeros(1, 10, 19)}, r"noise has the shape .*19.* 20"),
    "no steps": ({"steps": 0}, "0 steps"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str) -> None:
    given, sentence = BAD[case]
    tokens = given.get("tokens", TOKENS)
    with pytest.raises(UsageError, match=sentence):
        token_flow().sample(tokens, **{k: v for k, v in given.items() if k != "tokens"})


def test_counts_must_fill_the_tensor() -> None:
    flow, (tokens, mel, _, draw) = token_flow(), training()
    with pytest.raises(UsageError, match="do not fit a tensor of length 9"):
        flow(tokens, mel, token_counts=[8, 5, 7], frame_counts=[18] * 3, draw=draw)


def test_saved_and_loaded_it_samples_the_same(tmp_path: Path) -> None:
    flow, noise = token_flow(), torch.randn(1, 10, 20)
    flow.save(tmp_path)
    loaded = TokenFlow.load(tmp_path)
    wanted = flow.sample(TOKENS, noise=noise, steps=2)
    assert torch.equal(loaded.sample(TOKENS, noise=noise, steps=2), wanted)
