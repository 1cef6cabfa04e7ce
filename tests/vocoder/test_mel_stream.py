"""Windows of the flow against the whole clip, with a trained voice and with any weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aqaa.answer import DEMO
from aqaa.audio.file import prepare, read_audio
from aqaa.errors import UsageError
from aqaa.signals import LINGUISTIC_CODES
from aqaa.tokenizer.dual import DualTokenizer
from aqaa.vocabulary import interleaved
from aqaa.vocoder.flow import FlowVocoder
from aqaa.vocoder.mel_stream import MelStream, Pace
from aqaa.vocoder.sound_stream import SoundStream
from aqaa.vocoder.waveform import WaveformHead
from tests.golden.make import token_flow

IDS = torch.arange(5 * 11).remainder(24).tolist()


def chance() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def stream(pace: Pace, flow: Any = None, **told: Any) -> MelStream:
    told = {"steps": 2, "guidance": 0.7, **told}
    return MelStream(flow or token_flow(), pace=pace, told=told, generator=chance())


def whole(ids: list[int], prompt_frames: int = 0, **told: Any) -> Tensor:
    flow = token_flow()
    noise = torch.randn(flow.frames(len(ids)) + prompt_frames, 10, generator=chance()).T[None]
    return flow.sample(torch.tensor([ids]), noise=noise, steps=2, guidance=0.7, **told)


def pieces(stream: MelStream, ids: list[int], cut: int) -> list[Tensor]:
    found = [stream.push(ids[i : i + 5 * cut]) for i in range(0, len(ids), 5 * cut)]
    return [*found, stream.push([], last=True)]


@pytest.mark.parametrize("cut", [1, 4, 11])
def test_windows_as_long_as_the_clip_give_the_clip(cut: int) -> None:
    pace = Pace(chunk_groups=3, context_groups=12, ahead_groups=12)
    found = torch.cat(pieces(stream(pace), IDS, cut), 2)
    torch.testing.assert_close(found, whole(IDS), rtol=0, atol=1e-5)


def test_with_a_speaker_and_a_prompt_too() -> None:
    told = {
        "speaker": torch.randn(1, 5),
        "prompt_tokens": torch.arange(5)[None],
        "prompt_mel": torch.randn(1, 10, 16),
    }
    pace = Pace(chunk_groups=4, context_groups=12, ahead_groups=12)
    found = torch.cat(pieces(stream(pace, **told), IDS, 2), 2)
    torch.testing.assert_close(found, whole(IDS, 16, **told), rtol=0, atol=1e-5)


def test_noise_comes_frame_after_frame() -> None:
    drawn = stream(Pace(), token_flow())
    drawn._flow.mel_bins = 80
    drawn._noise = drawn._draw(0)
    parts = [drawn._noise_at(place, 9)[:, :, :5] for place in range(0, 60, 5)]
    whole = torch.randn(64, 80, generator=chance()).T[None]
    assert torch.equal(torch.cat(parts, 2), whole[:, :, :60])
    assert drawn._noise.shape[2] == 9  # what is before is forgotten


def test_how_codes_come_changes_nothing_and_frames_are_whole() -> None:
    pace = Pace(chunk_groups=2, context_groups=3, ahead_groups=1, fade_frames=4)
    ways = [torch.cat(pieces(stream(pace), IDS, cut), 2) for cut in (1, 3, 11)]
    assert torch.equal(ways[0], ways[1]) and torch.equal(ways[0], ways[2])
    assert ways[0].shape[2] == token_flow().frames(len(IDS))


def test_a_chunk_waits_for_what_is_ahead_and_for_no_more() -> None:
    pace = Pace(chunk_groups=2, context_groups=3, ahead_groups=1)
    frames = [piece.shape[2] for piece in pieces(stream(pace), IDS, 1)]
    flow = token_flow()
    ends = [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 11]  # groups that are out after each push
    assert [sum(frames[: i + 1]) for i in range(12)] == [flow.frames(5 * end) for end in ends]


def test_what_is_far_away_is_not_heard() -> None:
    pace = Pace(chunk_groups=2, context_groups=2, ahead_groups=1, fade_frames=0)
    other = [*((i + 7) % 24 for i in IDS[:15]), *IDS[15:]]
    ways = [torch.cat(pieces(stream(pace), ids, 1), 2) for ids in (IDS, other)]
    begin = token_flow().frames(5 * 6)  # groups 6 and 7 hear from group 4 on
    assert torch.equal(ways[0][:, :, begin:], ways[1][:, :, begin:])
    assert not torch.equal(ways[0][:, :, :begin], ways[1][:, :, :begin])


def test_a_pace_that_cannot_be_kept_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="chunks need a group"):
        Pace(chunk_groups=0)


class Small:
    """The bundled voice, whose flow takes both books apart and starts from no noise."""

    mel_bins = 80

    def __init__(self, folder: Path) -> None:
        self.flow = FlowVocoder.load(folder)

    def frames(self, tokens: int) -> int:
        return 12 * tokens // 5

    def sample(self, tokens: Tensor, **given: Any) -> Tensor:
        groups = tokens.view(1, -1, 5)
        linguistic = groups[..., :2].flatten(1)
        return self.flow.sample(linguistic, groups[..., 2:].flatten(1) - LINGUISTIC_CODES)


@pytest.fixture(scope="module")
def spoken() -> dict[int, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Mel and sound of a clip, whole and streamed, by the bundled voice; by groups a chunk."""
    question = prepare(read_audio(DEMO / "question.wav"))
    codes = DualTokenizer.load(DEMO / "tokenizer").encode(torch.from_numpy(question.samples))
    ids = interleaved(codes)
    flow, head = Small(DEMO / "vocoder/flow"), WaveformHead.load(DEMO / "vocoder/waveform")
    found = {}
    with torch.no_grad():
        mel = flow.sample(torch.tensor([ids]))
        for chunk in (2, 3):
            sounds = SoundStream(head, generator=chance())
            mels = pieces(stream(Pace(chunk_groups=chunk), flow), ids, 1)
            samples = [sounds.push(piece) for piece in mels]
            samples.append(sounds.push(mel[:, :, :0], last=True))
            found[chunk] = (mel, torch.cat(mels, 2), head(mel)[0], torch.cat(samples))
    return found


@pytest.mark.parametrize("chunk", [2, 3])
def test_a_trained_voice_streams_near_the_whole_clip(chunk: int, spoken: Any) -> None:
    mel, streamed, sound, samples = spoken[chunk]
    assert mel.shape == streamed.shape and sound.shape == samples.shape
    assert len(sound) > 5 * 36 * 160  # several seams
    assert (mel - streamed).abs().mean() < 0.1


@pytest.mark.parametrize("chunk", [2, 3])
def test_seams_of_a_trained_voice_do_not_click(chunk: int, spoken: Any) -> None:
    _, _, sound, samples = spoken[chunk]
    flux, before = (_flux(x) for x in (samples, sound))
    seams = torch.arange(12 * chunk, len(flux) - 4, 12 * chunk)
    near = (seams[:, None] + torch.arange(-2, 3)).flatten()
    inside = torch.ones(len(flux), dtype=torch.bool)
    inside[near] = False
    # Speech itself changes more at some places: what counts is the whole clip at the same ones.
    assert flux[near].mean() <= 1.02 * before[near].mean()
    if chunk == 2:  # seams at so many places that they are like any others
        assert flux[near].mean() <= flux[inside].mean()


def _flux(samples: Tensor) -> Tensor:
    """Change of the log-spectrum from frame to frame (10 ms)."""
    window = torch.hann_window(400)
    spectrum = torch.stft(samples, 400, 160, window=window, return_complex=True).abs()
    return (spectrum + 1e-3).log().diff(dim=1).pow(2).mean(0).sqrt()
