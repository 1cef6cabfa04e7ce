"""Two public sets become one folder that every trainer of sound can read."""

import json
from pathlib import Path

import numpy as np
import pytest

from aqaa.audio.file import write_audio
from aqaa.data.clips import spoken
from aqaa.data.manifest import read_manifest
from aqaa.data.utterances import read_utterances
from tests.conftest import Chain
from tests.runs import tool

ORDERS = 21


def tone(path: Path, seconds: float = 0.2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, np.sin(np.arange(int(16_000 * seconds)) / 9).astype(np.float32) / 2, 16_000)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    for take in (0, 4, 5, 7, 8, 49):
        tone(tmp_path / f"recordings/digits/3_ann_{take}.wav")
    listed = []
    for place in range(ORDERS):
        tone(tmp_path / f"recordings/barista/{place:02}.wav")
        listed.append(json.dumps({"audio": f"{place:02}.wav", "intent": "orderDrink"}))
    (tmp_path / "recordings/barista/manifest.jsonl").write_text("\n".join(listed))
    return tmp_path / "recordings"


def ids(folder: Path, split: str) -> list[str]:
    return [row["id"] for row in read_manifest(folder / f"{split}.jsonl")]


def test_digits_are_split_by_take_and_orders_by_place(recordings: Path, tmp_path: Path) -> None:
    assert tool("human_speech").main([str(recordings), str(tmp_path / "out")]) == 0
    digits = {"test": (0, 4), "validation": (5, 7), "train": (8, 49)}
    orders = {"test": (0, 10, 20), "validation": (5,)}
    orders["train"] = tuple(i for i in range(ORDERS) if i not in (0, 5, 10, 20))
    for split in digits:
        wanted = [f"digits-3_ann_{take}" for take in digits[split]]
        wanted += [f"barista-{place:02}" for place in orders[split]]
        assert sorted(ids(tmp_path / "out", split)) == sorted(wanted)


def test_words_and_speakers_are_kept_where_known(recordings: Path, tmp_path: Path) -> None:
    tool("human_speech").main([str(recordings), str(tmp_path / "out")])
    heard = read_utterances(tmp_path / "out", ("test",))
    assert {(u.text, u.speaker) for u in heard} == {("three", "ann"), (None, None)}
    assert all(u.duration_s == pytest.approx(0.2) for u in heard)


def test_a_corpus_joins_the_training_part_alone(
    recordings: Path, tmp_path: Path, chain: Chain
) -> None:
    words = [str(recordings), str(tmp_path / "out"), "--corpus", str(chain / "corpus")]
    assert tool("human_speech").main([*words, "--rows", "7"]) == 0
    answers = len(read_manifest(chain / "corpus/answers.jsonl"))
    train = ids(tmp_path / "out", "train")
    assert sum(name.startswith("question-") for name in train) == 7
    assert sum(name.startswith("answer-") for name in train) == answers
    assert not any(
        name.startswith(("question-", "answer-")) for name in ids(tmp_path / "out", "test")
    )
    texts = {row["id"]: row["text"] for row in read_manifest(chain / "corpus/answers.jsonl")}
    made = spoken(tmp_path / "out", ["train"])
    assert {key: clip.text for key, clip in made.items() if "answer-" in key} == {
        f"train/{name}": text for name, text in texts.items()
    }


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda r: tone(r / "digits/three.wav"), "three.wav is not named as digit_speaker_take"),
        (lambda r: (r / "barista/07.wav").unlink(), "names 07.wav, which is not there"),
        (lambda r: (r / "barista/manifest.jsonl").unlink(), "manifest.jsonl does not exist"),
        (lambda r: [p.unlink() for p in (r / "digits").iterdir()], "holds no .wav file"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_written(
    recordings: Path,
    tmp_path: Path,
    break_it: object,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert callable(break_it)
    break_it(recordings)
    assert tool("human_speech").main([str(recordings), str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
