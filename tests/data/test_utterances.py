"""Utterances of rows of every kind, each stretch of sound once."""

import json
from pathlib import Path

import numpy as np
import pytest

from aqaa.audio.file import write_audio
from aqaa.data.utterances import read_utterances, readable, within
from aqaa.errors import UsageError

ROWS = [
    {"id": "a", "kind": "asr", "text": "Hello, World!", "speaker": "f1",
     "audio": {"path": "x.wav"}},
    {"id": "b", "kind": "tts", "text": "dear me", "style": {"emotion": "sad"},
     "audio": {"path": "x.wav", "start": 0.25, "end": 0.75, "phones": ["d", "i"]}},
    {"id": "c", "kind": "audio", "audio": {"path": "y.wav"}},
    {"id": "d", "kind": "chat", "meta": {"voice": "v"}, "messages": [
        {"role": "user", "content": [{"type": "audio", "path": "y.wav", "text": "who"}]},
        {"role": "assistant", "style": "calm", "speaker": "m", "content": [
            {"type": "text", "text": "me"}, {"type": "audio", "path": "z.wav"}]}]},
    {"id": "f", "kind": "chat", "messages": [{"role": "assistant", "content": [
        {"type": "text", "text": "a row of its own"},
        {"type": "audio", "path": "w.wav", "ref": "b"}]}]},
    {"id": "e", "kind": "chat", "messages": [
        {"role": "user", "content": [{"type": "text", "text": "no sound"}]}]},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, seconds in (("x", 1.0), ("y", 0.5), ("z", 2.0)):
        tone = 0.1 * np.sin(np.arange(round(16_000 * seconds)) / 9)
        write_audio(tmp_path / f"{name}.wav", tone.astype(np.float32), 16_000)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def test_every_stretch_of_sound_once_and_what_is_known_of_it(folder: Path) -> None:
    found = read_utterances(folder, ("train", "answers"))
    said = [(u.part["path"], u.duration_s, u.text, u.speaker, u.emotion) for u in found]
    assert said == [
        ("x.wav", 1.0, "Hello, World!", "f1", None),
        ("x.wav", 0.5, "dear me", None, "sad"),
        ("y.wav", 0.5, "who", "v", None),  # the row with a transcript counts
        ("z.wav", 2.0, "me", "m", "calm"),
    ]
    assert found[1].phones == ("d", "i")
    assert read_utterances(folder, ("validation",)) == []


def test_the_sound_comes_at_the_level_asked_for(folder: Path) -> None:
    first = read_utterances(folder, ("train",))[1].samples(folder, peak=0.999)
    assert len(first) == 8000 and float(first.abs().max()) == pytest.approx(0.999, abs=1e-4)


def test_only_what_can_be_read_aloud_is_learnt() -> None:
    assert readable("Don’t  STOP—it's 7 o'clock…") == "don t stop it's 7 o'clock"
    assert readable("你好，世界") == "你好 世界"
    assert readable("?!") == ""


def test_what_is_too_long_is_left_out_and_said(folder: Path, capsys) -> None:
    found = read_utterances(folder, ("train",))
    assert [u.duration_s for u in within(found, 1.0, folder)] == [1.0, 0.5, 0.5]
    assert "1 utterances longer than 1 s are left out" in capsys.readouterr().out
    with pytest.raises(UsageError, match="4 utterances, none of at most 0.1 s"):
        within(found, 0.1, folder)
