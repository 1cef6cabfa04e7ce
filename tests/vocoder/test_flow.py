"""Pairs of frames, the solver on fields with a known answer, saving."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.losses.flow_matching import cosine_time, path
from aqaa.vocoder.flow import FlowVocoder, pack, unpack
from tests.golden.make import flow, waveform

CODES = torch.arange(4)[None], torch.arange(6)[None]


def test_packing_can_be_undone() -> None:
    mel = 3 * torch.randn(2, 80, 24) - 3
    pairs = pack(mel)
    assert pairs.shape == (2, 160, 12)
    torch.testing.assert_close(unpack(pairs), mel, rtol=0, atol=1e-5)
    torch.testing.assert_close(pack(unpack(pairs)), pairs, rtol=0, atol=1e-5)


def test_a_pair_holds_two_frames_in_a_row() -> None:
    mel = torch.randn(1, 80, 6)
    scaled = (mel + 3) / 2.5
    for place in range(3):
        column = pack(mel)[0, :, place]
        torch.testing.assert_close(column[0::2], scaled[0, :, 2 * place])
        torch.testing.assert_close(column[1::2], scaled[0, :, 2 * place + 1])


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_a_constant_field_is_solved_exactly(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vocoder = flow()
    noise, mel = torch.randn(1, 160, 12), 2 * torch.randn(1, 80, 24) - 3
    velocity = path(noise, pack(mel), torch.zeros(1))[1]
    times = []

    def constant(point: Tensor, condition: Tensor, time: Tensor, mask: Tensor) -> Tensor:
        times.append(float(time[0]))
        return velocity

    monkeypatch.setattr(vocoder, "velocity", constant)
    found = vocoder.sample(*CODES, steps=steps, noise=noise)
    torch.testing.assert_close(found, mel, rtol=0, atol=1e-4)
    assert times == pytest.approx(cosine_time(torch.linspace(0, 1, steps + 1))[:-1].tolist())


def test_more_steps_come_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    vocoder, noise = flow(), torch.randn(1, 160, 12)
    monkeypatch.setattr(vocoder, "velocity", lambda point, *_: -point)
    exact = unpack(noise * torch.tensor(-1.0).exp())
    errors = [
        float((vocoder.sample(*CODES, steps=n, noise=noise) - exact).abs().max())
        for n in (2, 8, 32)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_guidance_moves_away_from_no_condition(
    guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocoder, calls = flow(), []

    def field(point: Tensor, condition: Tensor, time: Tensor, mask: Tensor) -> Tensor:
        told = condition.flatten(1).any(1)
        calls.append(told.tolist())
        return torch.where(told[:, None, None], 3.0, 1.0).expand_as(point)

    monkeypatch.setattr(vocoder, "velocity", field)
    found = vocoder.sample(*CODES, steps=2, guidance=guidance)
    speed = (1 + guidance) * 3 - guidance * 1
    torch.testing.assert_close(found, unpack(torch.full((1, 160, 12), speed)))
    assert calls == [[True, False] if guidance else [True]] * 2  # guided in one call


@torch.no_grad()
def test_a_masked_batch_equals_single_items() -> None:
    vocoder = flow()
    generator = torch.Generator().manual_seed(0)
    linguistic = torch.randint(1024, (2, 8), generator=generator)
    semantic = torch.randint(4096, (2, 12), generator=generator)
    point, time = torch.randn(2, 160, 24, generator=generator), torch.tensor([0.2, 0.7])
    mask = torch.ones(2, 24)
    mask[1, 12:] = 0
    condition = vocoder.conditioning(linguistic, semantic, mask)
    together = vocoder.velocity(point, condition, time, mask)
    ones = torch.ones(1, 12)
    short = vocoder.conditioning(linguistic[1:, :4], semantic[1:, :6], ones)
    alone = vocoder.velocity(point[1:, :, :12], short, time[1:], ones)
    torch.testing.assert_close(together[1:, :, :12], alone, rtol=0, atol=1e-5)


def test_the_start_decides_the_sample() -> None:
    vocoder, noise = flow(), torch.randn(1, 160, 12)
    assert vocoder.sample(*CODES).shape == (1, 80, 24)
    assert torch.equal(vocoder.sample(*CODES), vocoder.sample(*CODES))
    assert torch.equal(vocoder.sample(*CODES, noise=noise), vocoder.sample(*CODES, noise=noise))
    assert not torch.equal(vocoder.sample(*CODES), vocoder.sample(*CODES, noise=noise))


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_saved_and_loaded_it_samples_the_same(dtype: torch.dtype | None, tmp_path: Path) -> None:
    vocoder = flow()
    vocoder.save(tmp_path, dtype=dtype)
    loaded = FlowVocoder.load(tmp_path)
    tolerance = 0 if dtype is None else 0.1
    wanted = vocoder.sample(*CODES)
    torch.testing.assert_close(loaded.sample(*CODES), wanted, rtol=0, atol=tolerance)


def test_another_organ_is_refused(tmp_path: Path) -> None:
    waveform().save(tmp_path)
    with pytest.raises(UsageError, match="holds a WaveformHead, not a FlowVocoder"):
        FlowVocoder.load(tmp_path)
