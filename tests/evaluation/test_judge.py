import pytest

from aqaa.audio.file import write_audio
from aqaa.errors import UsageError
from aqaa.evaluation.judge import ground_truth, judge


def ear(samples):
    """Hears how many tenths of a second there are."""
    return f"{len(samples) / 1600:.0f}"


def test_every_row_gets_what_was_heard(tmp_path, tones):
    write_audio(tmp_path / "a.wav", tones(0.5, 120), 16_000)
    rows = [{"id": "1", "answer": "a.wav"}, {"id": "2", "answer": ""}]
    judged = judge(rows, ear, tmp_path)
    assert judged == [{**rows[0], "heard": "5"}, {**rows[1], "heard": ""}]
    assert "heard" not in rows[0]


def test_a_missing_answer_file_is_an_error_not_a_mistake(tmp_path):
    with pytest.raises(UsageError, match="a.wav"):
        judge([{"answer": "a.wav"}], ear, tmp_path)


def test_share_of_original_clips_recognised(tmp_path, tones):
    write_audio(tmp_path / "many.wav", tones(2.4, 120), 16_000)
    clips = [
        {"text": text, "audio": {"path": "many.wav", "start": 0.0, "end": end}}
        for text, end in (("6", 0.6), ("12", 1.2), ("9", 1.2))
    ]
    found = ground_truth(clips, ear, tmp_path)
    assert (found["value"], found["n"], found["split"]) == (2 / 3, 3, "original answer clips")
