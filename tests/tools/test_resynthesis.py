"""The bundled voice says what it hears again; the table and its JSON."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from aqaa.answer import DEMO
from tests.conftest import Chain
from tests.runs import tool

VOICE = ["--waveform", str(DEMO / "vocoder/waveform"), "--flow", str(DEMO / "vocoder/flow")]
WHOLE = [*VOICE, "--tokenizer", str(DEMO / "tokenizer")]


def test_a_folder_of_sounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(DEMO / "question.wav", tmp_path / "a.wav")
    assert tool("resynthesis").main([str(tmp_path), *WHOLE, "--out", str(tmp_path / "out")]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)
    head, codes = (found[way]["mel_distance"]["value"] for way in ("head", "codes"))
    assert found["clips"] == 1 and 0 < head < codes < 2
    assert found["recognised"] == {}
    assert any(line.startswith("| mel_distance") and f"{codes:.3f}" in line for line in table)
    assert "not measured" in table[-1]
    assert sorted(p.parent.name for p in (tmp_path / "out").rglob("*.wav")) == ["codes", "head"]


def test_manifests_are_listened_to(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pocketsphinx")
    words = [str(chain / "corpus"), "--waveform", str(DEMO / "vocoder/waveform"), "--rows", "6"]
    assert tool("resynthesis").main(words) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(found["recognised"]) == {"original", "head"} and "codes" not in found
    assert found["recognised"]["original"]["n"] == found["clips"] == 6
    assert found["recognised"]["original"]["value"] > 0.5


def test_a_list_of_another_form_beside_the_sounds_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(DEMO / "question.wav", tmp_path / "a.wav")
    (tmp_path / "manifest.jsonl").write_text('{"audio": "a.wav", "intent": "ask"}\n')
    assert tool("resynthesis").main([str(tmp_path), *VOICE[:2]]) == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["clips"] == 1


def test_a_flow_without_its_tokenizer_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        tool("resynthesis").main([str(tmp_path), *VOICE])
    assert "--flow and --tokenizer go together" in capsys.readouterr().err


def test_nothing_to_measure_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool("resynthesis").main([str(tmp_path), *VOICE[:2]]) == 2
    assert "no sound file and no manifest lies there" in capsys.readouterr().err


def test_the_test_alone_is_heard_and_a_sound_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pocketsphinx")
    shutil.copy(DEMO / "question.wav", tmp_path / "a.wav")
    shutil.copy(DEMO / "question.wav", tmp_path / "b.wav")
    said = {"kind": "asr", "audio": {"path": "a.wav"}, "text": "which color is grass"}
    unknown = {"kind": "audio", "audio": {"path": "b.wav"}}
    rows = {"train": [said], "test": [said, said, unknown]}
    for split, listed in rows.items():
        lines = [json.dumps(row | {"id": f"{split}-{i}"}) for i, row in enumerate(listed)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))

    def measured(*words: str) -> dict[str, Any]:
        assert tool("resynthesis").main([str(tmp_path), *VOICE[:2], *words]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        return found

    found = measured()
    assert found["clips"] == 2 and found["recognised"]["original"]["n"] == 1
    assert measured("--keys", "test/test-2")["recognised"] == {}
    assert measured("--keys", "train/")["clips"] == 1


def test_keys_of_no_clip_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(DEMO / "question.wav", tmp_path / "a.wav")
    (tmp_path / "train.jsonl").write_text('{"id": "a", "audio": {"path": "a.wav"}}\n')
    assert tool("resynthesis").main([str(tmp_path), *VOICE[:2], "--keys", "tset/"]) == 2
    assert "no clip" in (said := capsys.readouterr().err) and "tset/" in said
    with pytest.raises(SystemExit, match="2"):
        tool("resynthesis").main([str(tmp_path), *VOICE[:2], "--rows", "0"])
    assert "0 clips cannot be measured" in capsys.readouterr().err
