"""Pitch and level: the definition in loops, known tones, silence and noise, Praat on speech."""

import math

import pytest
import torch

from aqaa.audio.pitch import pitch, voice
from tests.conftest import Chain

RATE_HZ = 22050


def tone(hz: float, seconds: float = 0.5) -> torch.Tensor:
    """A sound with ten harmonics."""
    t = torch.arange(int(seconds * RATE_HZ)) / RATE_HZ
    return sum(torch.sin(2 * math.pi * hz * k * t) / k for k in range(1, 11)) * 0.1


@pytest.mark.parametrize("hz", [70.0, 101.3, 220.0, 333.3, 480.0])
def test_a_tone_has_its_pitch(hz: float) -> None:
    found = pitch(tone(hz), rate_hz=RATE_HZ, hop_samples=256)
    assert found.shape == (11025 // 256,)
    inside = found[4:-4]
    assert (inside - hz).abs().max() < 0.005 * hz


def test_a_pitch_lies_in_the_middle_of_its_frame() -> None:
    found = pitch(torch.cat([tone(120.0), tone(240.0)]), rate_hz=RATE_HZ, hop_samples=256)
    change = 11025 / 256
    rising = int((found > 180).nonzero()[0])
    assert abs(rising - change) < 4 and (found[rising + 4 : -4] > 230).all()


def test_silence_and_noise_have_none() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(11025, generator=generator)
    assert (pitch(noise, rate_hz=RATE_HZ, hop_samples=256) > 0).float().mean() < 0.1
    assert not pitch(torch.zeros(11025), rate_hz=RATE_HZ, hop_samples=256).any()
    after = pitch(torch.cat([tone(200.0), 1e-4 * tone(200.0)]), rate_hz=RATE_HZ, hop_samples=256)
    assert not after[-20:].any()
    assert pitch(torch.zeros(100), rate_hz=RATE_HZ, hop_samples=256).shape == (0,)


def test_speech_beside_praat(chain: Chain) -> None:
    parselmouth = pytest.importorskip("parselmouth")
    from aqaa.data.clips import Clips

    clips = Clips(chain / "corpus", manifests=["answers", "test"])
    errors, agreed = [], []
    for key in list(clips.spoken)[:12]:
        samples, ours = clips.samples(key), clips.pitch(key)
        sound = parselmouth.Sound(samples.double().numpy(), sampling_frequency=RATE_HZ)
        theirs = sound.to_pitch(0.005, 60, 500)
        for i, hz in enumerate(ours.tolist()):
            wanted = theirs.get_value_at_time((i + 0.5) * 256 / RATE_HZ)
            agreed.append((hz > 0) == (wanted == wanted))
            if hz > 0 and wanted == wanted:
                errors.append(abs(hz / wanted - 1))
    errors.sort()
    assert errors[len(errors) // 2] < 0.01 and errors[int(0.9 * len(errors))] < 0.08
    assert sum(agreed) / len(agreed) > 0.85


PLACES = 40


def sung(f0_hz: torch.Tensor, harmonics: int = 8) -> torch.Tensor:
    """A buzz (T,) at 16 kHz whose pitch is given sample by sample."""
    phase = 2 * math.pi * (f0_hz / 16_000).cumsum(0)
    return 0.1 * sum((k * phase).sin() / k for k in range(1, harmonics + 1))


def test_against_a_loop() -> None:
    """Every lag's normalised difference by its sum, and the first valley below the threshold."""
    clip = sung(150 + 40 * (torch.arange(12_800) / 3000).sin())
    found = voice(clip, 20)
    for n in range(2, 18):
        frame = clip[640 * n - 512 : 640 * n + 512].double()
        level = math.log(math.sqrt(float((frame**2).mean())))
        assert float(found.level[n]) == pytest.approx(level, abs=1e-4)
        width, lags = round(0.035 * 16_000), 16_000 // 60 + 2
        start = 640 * n - (width + lags - 640) // 2 - 320  # of a stretch about the place
        window = clip[start : start + width].double()
        apart = [float((window - clip[start + lag : start + lag + width]).square().sum())
                 for lag in range(lags)]  # fmt: skip
        normal = [1.0] + [apart[k] * k / sum(apart[1 : k + 1]) for k in range(1, lags)]
        valleys = (
            k for k in range(32, lags - 1) if normal[k - 1] > normal[k] <= normal[k + 1]
        )
        first = next(k for k in valleys if normal[k] < 0.35)
        assert abs(16_000 / float(found.f0_hz[n]) - first) <= 0.5, n


@pytest.mark.parametrize("f0_hz", [70.0, 123.0, 251.0, 440.0])
def test_a_steady_tone(f0_hz: float) -> None:
    found = voice(sung(torch.full((PLACES * 640,), f0_hz)), PLACES)
    inside = found.f0_hz[2:-2]
    assert bool(((inside / f0_hz).log2().abs() < 0.01).all())


def test_noise_and_silence_have_no_pitch() -> None:
    noise = 0.1 * torch.randn(PLACES * 640, generator=torch.Generator().manual_seed(0))
    assert int((voice(noise, PLACES).f0_hz > 0).sum()) <= 1
    silent = voice(torch.zeros(100), 3)
    assert silent.f0_hz.tolist() == [0, 0, 0] and bool(silent.level.isfinite().all())


def test_a_glide_is_what_praat_hears() -> None:
    parselmouth = pytest.importorskip("parselmouth")
    seconds = torch.arange(32_000) / 16_000
    clip = sung(180 + 90 * (2 * seconds).sin()) * (seconds % 1 < 0.7)
    found = voice(clip, 50).f0_hz
    pitch = parselmouth.Sound(clip.double().numpy(), sampling_frequency=16_000).to_pitch(0.01)
    heard = [pitch.get_value_at_time(0.04 * n) for n in range(50)]
    both = [n for n in range(50) if heard[n] == heard[n] and found[n] > 0]
    assert len(both) >= 30
    errors = [abs(math.log2(float(found[n]) / heard[n])) for n in both]
    assert sorted(errors)[len(errors) // 2] < 0.01 and max(errors) < 0.1
    assert sum((heard[n] == heard[n]) != bool(found[n] > 0) for n in range(50)) <= 5
