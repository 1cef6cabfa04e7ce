"""Tokens beside their mel at the vocoder's rate, and segments of sound with their pitch."""

from pathlib import Path

import pytest
import torch

from aqaa.audio.vocoder_mel import vocoder_mel
from aqaa.data.clips import SILENCE, Clips, split
from aqaa.data.token_store import TokenStore
from aqaa.data.token_voice import SoundBatches, TokenFlowBatches
from aqaa.errors import UsageError
from aqaa.storage import save_tensors
from aqaa.vocabulary import interleaved
from tests.conftest import Chain
from tests.golden.make import token_flow


def flow(chain: Chain, **options: object) -> TokenFlowBatches:
    folders = {"corpus": str(chain / "corpus"), "tokens": str(chain / "tokens")}
    return TokenFlowBatches(**folders, **options)  # type: ignore[arg-type]


def test_tokens_stand_beside_their_mel(chain: Chain) -> None:
    store, clips = TokenStore(chain / "tokens"), Clips(chain / "corpus")
    known = {tuple(interleaved(store[key])): key for key in store.keys()}
    batch = flow(chain, batch=4, longest_groups=1000).batch(0)
    assert batch.speaker is None and batch.heard is None
    for row, (count, frames) in enumerate(zip(batch.token_counts, batch.frame_counts, strict=True)):
        key = known[tuple(batch.tokens[row, :count].tolist())]
        assert not key.startswith(("test/", "validation/"))
        assert frames == token_flow().frames(count)
        whole = vocoder_mel(clips.samples(key)[None])[0]
        assert abs(whole.shape[1] - frames) <= 1
        shared = min(whole.shape[1], frames)
        assert (batch.mel[row, :, :shared] - whole[:, :shared]).abs().max() < 0.01
        assert (batch.mel[row, :, frames:] == SILENCE).all()
        assert clips.samples(key).abs().max() == pytest.approx(0.5, abs=1e-6)
    assert max(batch.token_counts) == batch.tokens.shape[1]
    assert max(batch.frame_counts) == batch.mel.shape[2]


def test_long_clips_give_a_stretch_of_both(chain: Chain) -> None:
    store, source = TokenStore(chain / "tokens"), flow(chain, batch=4, longest_groups=4)
    starts = set()
    for step in range(6):
        batch = source.batch(step)
        assert batch.tokens.shape == (4, 20) and batch.frame_counts == [41] * 4
        for row in range(4):
            place = _find(store, source, batch.tokens[row].tolist(), batch.mel[row])
            starts.add(place)
    assert len(starts) > 4


def _find(store: TokenStore, source: TokenFlowBatches, ids: list[int], mel: torch.Tensor) -> int:
    """The group where a stretch begins, by its ids and its mel both."""
    for key in store.keys():
        if key not in source.clips.spoken:
            continue
        whole = interleaved(store[key])
        for group in range(len(whole) // 5 - 3):
            if whole[5 * group : 5 * group + 20] == ids:
                frame = round(group * 0.12 * 22050 / 256)
                there = source.clips.mel(key)[:, frame : frame + 41].float()
                if there.shape == mel.shape and torch.equal(there, mel):
                    return group
    raise AssertionError("no clip holds these codes beside this mel")


def test_speakers_are_told_by_name_to_their_share(chain: Chain, tmp_path: Path) -> None:
    names = {place.speaker for place in Clips(chain / "corpus").spoken.values()}
    vectors = {name: torch.full((3,), float(i)) for i, name in enumerate(sorted(names))}
    save_tensors(tmp_path / "speakers.safetensors", vectors)
    path = str(tmp_path / "speakers.safetensors")
    source, heard = flow(chain, batch=8, speakers=path, speaker_share=0.7), []
    for step in range(20):
        batch = source.batch(step)
        assert batch.speaker.shape == (8, 3)
        heard += batch.heard.tolist()
    assert 0.55 < sum(heard) / len(heard) < 0.85
    save_tensors(tmp_path / "speakers.safetensors", {"nobody": torch.zeros(3)})
    with pytest.raises(UsageError, match="holds no vector of '.+', the speaker of answers/"):
        flow(chain, speakers=path)


def test_manifests_are_chosen_by_name(chain: Chain) -> None:
    source = flow(chain, manifests=["answers"])
    assert {key.split("/")[0] for key in source.clips.spoken} == {"answers"}
    with pytest.raises(UsageError, match="nothing.jsonl does not exist"):
        flow(chain, manifests=["nothing"])
    with pytest.raises(UsageError, match="holds no manifest"):
        Clips(chain / "tokens")


def test_codes_of_another_length_are_refused(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = flow(chain, batch=1)
    monkeypatch.setattr(source.clips, "mel", lambda key: torch.zeros(80, 999))
    with pytest.raises(UsageError, match=r"lasts .* s in .*corpus, .* s by its codes"):
        source.batch(0)


def test_clips_are_held_out() -> None:
    assert split(["a/1", "test/1", "validation/2"]) == (["a/1"], ["validation/2"])
    train, checked = split([f"a/{i}" for i in range(41)])
    assert len(checked) == 3 and not set(train) & set(checked) and len(train) == 38
    assert split(["a/1", "a/2"]) == (["a/1", "a/2"], ["a/1", "a/2"])


def test_segments_hold_mel_sound_and_pitch_of_one_place(chain: Chain) -> None:
    batch = SoundBatches(corpus=str(chain / "corpus"), batch=8, segment_frames=32).batch(1)
    assert batch.mel.shape == (8, 80, 32) and batch.samples.shape == (8, 8192)
    inside = slice(3, 29)  # away from the cuts, where the windows see the same samples
    assert (vocoder_mel(batch.samples) - batch.mel)[:, :, inside].abs().max() < 0.02
    voiced = batch.pitch > 0
    assert batch.pitch.shape == (8, 32) and 0.2 < voiced.float().mean() < 1
    assert 60 <= batch.pitch[voiced].median() <= 400
    silent = SoundBatches(corpus=str(chain / "corpus"), batch=8, pitch=False).batch(1)
    assert not silent.pitch.any() and torch.equal(silent.mel, batch.mel)


def test_segments_longer_than_a_clip_end_in_silence(chain: Chain) -> None:
    batch = SoundBatches(corpus=str(chain / "corpus"), batch=2, segment_frames=2000).batch(0)
    assert (batch.mel[:, :, -1] == SILENCE).all() and not batch.samples[:, -256:].any()


def test_clips_of_other_manifests_are_trimmed_and_numbered(tmp_path: Path) -> None:
    import json

    import numpy as np

    from aqaa.audio.file import write_audio

    tone = 0.3 * np.sin(np.arange(16_000) * 0.1).astype(np.float32)
    silence = np.zeros(8_000, np.float32)
    write_audio(tmp_path / "a.wav", np.concatenate([silence, tone, silence]), 16_000)
    audio = {"type": "audio", "path": "a.wav"}
    rows = [
        {"id": "one", "audio": {"path": "a.wav"}, "speaker": "ann", "text": "hm"},
        {"id": "two", "messages": [{"role": "user", "content": [audio]},
                                   {"role": "assistant", "content": [audio]}]},
        {"id": "none", "text": "no sound", "meta": None},
    ]  # fmt: skip
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clips = Clips(tmp_path)
    assert list(clips.spoken) == ["m/one", "m/two/0", "m/two/1"]
    assert (clips.spoken["m/one"].speaker, clips.spoken["m/one"].text) == ("ann", "hm")
    samples = clips.samples("m/one")
    # A second of sound, 30 ms before and 50 ms after it: as tokenizers hear it.
    assert len(samples) == pytest.approx(1.08 * 22050, abs=30)
    assert samples.abs().max() == pytest.approx(0.5, abs=1e-3)
