"""Pitch of known tones, of silence and noise, of speech beside Praat's."""

import math

import pytest
import torch

from aqaa.audio.yin import pitch
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
