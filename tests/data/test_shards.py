"""Shards: alignment, order, the same bytes for any number of workers, failures."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")

from aqaa.audio.file import read_audio
from aqaa.data import shards
from aqaa.data.shards import Utterance, speak
from aqaa.errors import UsageError
from aqaa.signals import GROUP_SAMPLES

# breathy voices draw noise, the echoing one carries state from one utterance to the next
VOICES = ("en-us", "en-us+f2", "en-us+Alicia", "en-us+klatt3")
LISTS = {
    "one": [Utterance(f"number {i}", VOICES[i % 4], 150 + i, 40) for i in range(11)],
    "two": [Utterance("the last", "en-us+m3", 160, 50)],
}


def spoken_with(folder: Path, workers: int) -> dict[str, list[shards.Clip]]:
    (folder / "audio").mkdir(parents=True)
    return speak(LISTS, folder=folder, workers=workers, spoken=lambda count: None)


def test_clips_keep_the_order_given_and_tile_their_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shards, "SHARD_CLIPS", 4)
    clips = spoken_with(tmp_path, 2)
    assert [len(made) for made in clips.values()] == [11, 1]
    assert {c.path for c in clips["one"]} == {f"audio/one_00{i}.wav" for i in range(3)}
    for path in {c.path for made in clips.values() for c in made}:
        pieces = sorted((c.start_samples, c.end_samples) for m in clips.values() for c in m
                        if c.path == path)  # fmt: skip
        assert pieces[0][0] == 0
        assert [end for _, end in pieces[:-1]] == [start for start, _ in pieces[1:]]
        assert pieces[-1][1] == len(read_audio(tmp_path / path).samples)
        assert all(edge % GROUP_SAMPLES == 0 for piece in pieces for edge in piece)
    # "number 7" has other phones than "number 8": clips did not change places
    assert clips["one"][7].phones[-5:] == ("s", "E", "v", "@", "n")
    assert clips["one"][8].phones[-2:] == ("eI", "t")


def test_a_clip_begins_and_ends_with_its_own_sound(tmp_path: Path) -> None:
    for clip in spoken_with(tmp_path, 1)["one"]:
        part = clip.part()
        wave = read_audio(tmp_path / part["path"], start_s=part["start"], end_s=part["end"])
        assert len(wave.samples) == clip.end_samples - clip.start_samples
        assert np.abs(wave.samples).max() == pytest.approx(0.5, abs=1e-3)
        assert np.abs(wave.samples[:600]).max() > 0.01  # speech within the kept 30 ms + 7 ms


def test_the_bytes_do_not_depend_on_the_workers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shards, "SHARD_CLIPS", 3)
    one = spoken_with(tmp_path / "1", 1)
    time.sleep(1.1)  # unseeded, the library's noise starts from the clock's second
    assert spoken_with(tmp_path / "3", 3) == one
    names = sorted(p.name for p in (tmp_path / "1/audio").iterdir())
    assert len(names) == 5
    for name in names:
        one, three = (tmp_path / workers / "audio" / name for workers in "13")
        assert one.read_bytes() == three.read_bytes(), name


def test_progress_ends_at_the_number_of_clips(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    counts: list[int] = []
    speak(LISTS, folder=tmp_path, workers=2, spoken=counts.append)
    assert counts[-1] == 12 and counts == sorted(counts)


def test_an_error_of_a_worker_comes_back_whole(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    lists = {"bad": [Utterance("hello", "en-us+nobody", 160, 50)]}
    with pytest.raises(UsageError, match="no voice 'en-us\\+nobody'"):
        speak(lists, folder=tmp_path, workers=2, spoken=lambda count: None)


def test_a_worker_that_dies_is_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shards, "_speak_shard", lambda *given: os._exit(9))
    with pytest.raises(UsageError, match="ended with code 9"):
        speak(LISTS, folder=tmp_path, workers=2, spoken=lambda count: None)
