"""Each code once, all findings of a file, nothing written."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from aqaa.audio.file import write_audio
from aqaa.data.validate import Finding, check, validate
from aqaa.errors import UsageError

AUDIO = {"type": "audio", "path": "a.wav"}
USER = {"role": "user", "content": [AUDIO]}
ASSISTANT = {"role": "assistant", "loss": True, "content": [{"type": "text", "text": "four"}]}
CHAT = {"id": "c", "messages": [USER, ASSISTANT]}
FIVE = {"role": "assistant", "content": [{"type": "text", "text": "five"}]}
PAIR = {"id": "p", "prompt": [USER], "chosen": [ASSISTANT], "rejected": [FIVE]}
TTS = {"id": "t", "kind": "tts", "text": "that is four", "audio": {"path": "a.wav"}}
CODES = {"linguistic": [0, 1023, 5, 6], "semantic": [0, 4095, 1, 2, 3, 4]}


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, round(16_000 * seconds)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_audio(tmp_path / "a.wav", noise(1.0), 16_000)
    return tmp_path


def written(folder: Path, *rows: Any, name: str = "m.jsonl") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def codes_of(folder: Path, *rows: Any, **options: Any) -> list[str]:
    return [f.code for f in validate(manifest=written(folder, *rows), **options)]


def changed(row: dict, *path: Any, to: Any) -> dict:
    """A copy of ``row`` with the value at ``path`` replaced."""
    row = copy.deepcopy(row)
    holder = row
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = to
    return row


def chat_with(part: dict) -> dict:
    return changed(CHAT, "messages", 0, "content", to=[part])


GOOD = [
    CHAT,
    changed(CHAT, "messages", to=[{"role": "system", "content": []}, USER, ASSISTANT]),
    changed(CHAT, "messages", to=[USER, ASSISTANT, USER, ASSISTANT]),
    changed(CHAT, "messages", 0, "role", to="human"),
    chat_with({"type": "audio", "codes": CODES}),
    chat_with({"type": "audio", "path": "a.wav", "start": 0.1, "end": 0.9}),
    PAIR,
    {**PAIR, "chosen": [USER, ASSISTANT], "rejected": [USER, FIVE], "margin": 1.0},
    TTS,
    {**TTS, "kind": "asr"},
    {"id": "x", "text": "only words"},
    {"id": "s", "audio": {"path": "a.wav"}},
]


@pytest.mark.parametrize("row", GOOD)
@pytest.mark.parametrize("deep", [False, True])
def test_good_rows_have_no_findings(folder: Path, row: dict, deep: bool) -> None:
    assert validate(manifest=written(folder, row), deep=deep) == []


BAD = [
    ("E001", "{broken"),
    ("E001", "[1, 2]"),
    ("E002", {"messages": [USER, ASSISTANT]}),
    ("E002", {**CHAT, "kind": "video"}),
    ("E002", {**CHAT, "colour": "blue"}),
    ("E002", {"id": "t", "kind": "tts", "text": "no sound"}),
    ("E002", {"id": "e"}),
    ("E002", changed(CHAT, "messages", to="what is two plus two")),
    ("E002", changed(CHAT, "messages", 0, "content", to="words")),
    ("E002", changed(CHAT, "messages", 1, "mood", to="gay")),
    ("E002", chat_with({"type": "audio"})),
    ("E002", chat_with({"type": "image", "path": "a.png"})),
    ("E002", chat_with({**AUDIO, "volume": 3})),
    ("E002", chat_with({**AUDIO, "start": "early"})),
    ("E002", chat_with({"type": "audio", "codes": {"linguistic": [1]}})),
    ("E002", chat_with({"type": "text"})),
    ("E001", '{"id": "n", "text": NaN}'),
    ("E001", json.dumps(chat_with({**AUDIO, "start": float("nan")}))),
    ("E001", json.dumps(chat_with({**AUDIO, "end": float("inf")}))),
    ("E001", "[" * 100_000),
    ("E001", '{"id":' * 900 + "1" + "}" * 900),
    ("E001", '{"id": "\\ud800", "text": "half a character"}'),
    ("E002", json.dumps(chat_with({**AUDIO, "end": 9.0})).replace("9.0", "1e999")),
    ("E002", json.dumps(chat_with({**AUDIO, "end": 9.0})).replace("9.0", "9" * 400)),
    ("E002", chat_with({**AUDIO, "start": 0.5, "end": 0.5})),
    ("E002", chat_with({**AUDIO, "start": -0.5})),
    ("E002", chat_with({**AUDIO, "start": True})),
    ("E002", chat_with({**AUDIO, "sr": "16000"})),
    ("E002", chat_with({**AUDIO, "sr": [16000]})),
    ("E002", {**CHAT, "kind": ["chat"]}),
    ("E002", chat_with({**AUDIO, "type": ["audio"]})),
    ("E002", {**CHAT, "id": "../../c"}),
    ("E002", {**CHAT, "id": ".."}),
    ("E002", {**CHAT, "id": "a b"}),
    ("E003", changed(CHAT, "messages", to=[ASSISTANT, USER])),
    ("E003", changed(CHAT, "messages", to=[USER])),
    ("E003", changed(CHAT, "messages", to=[USER, USER, ASSISTANT])),
    ("E003", {**PAIR, "prompt": [USER, ASSISTANT]}),
    ("E003", {**PAIR, "chosen": [USER]}),
    ("E004", chat_with({"type": "audio", "path": "lost.wav"})),
    ("E004", chat_with({"type": "audio", "path": "../a.wav"})),
    ("E004", chat_with({"type": "audio", "path": "/etc/hostname"})),
    ("E004", chat_with({"type": "audio", "path": "a\0.wav"})),
    ("E004", chat_with({"type": "audio", "path": 500 * "a"})),
    ("E006", chat_with({"type": "audio", "codes": {**CODES, "linguistic": [0, 1024, 5, 6]}})),
    ("E006", chat_with({"type": "audio", "codes": {**CODES, "semantic": [-1, 0, 0, 0, 0, 0]}})),
    ("E007", chat_with({"type": "audio", "codes": {**CODES, "semantic": [1, 2]}})),
    ("E009", {**PAIR, "rejected": [ASSISTANT]}),
    ("E010", {**PAIR, "chosen": [{**USER, "role": "human"}, ASSISTANT]}),
    ("E011", {**TTS, "text": "  "}),
    ("E011", changed(CHAT, "messages", 1, "content", to=[])),
    ("W101", chat_with({**AUDIO, "sr": 8000})),
    ("W103", chat_with({**AUDIO, "start": 0.0, "end": 0.2, "text": "far too many words for it"})),
]


@pytest.mark.parametrize(("code", "row"), BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("deep", [False, True])
def test_a_fault_has_its_code_and_no_other(folder: Path, code: str, row: Any, deep: bool) -> None:
    if not (deep and code.startswith("W")):  # which the sound itself may decide
        assert codes_of(folder, row, deep=deep) == [code]


def test_an_id_twice(folder: Path) -> None:
    findings = validate(manifest=written(folder, CHAT, TTS, {**TTS, "id": "c"}))
    assert [(f.line, f.id, f.code) for f in findings] == [(3, "c", "E008")]
    assert "line 1" in findings[0].message


def test_labels_must_be_those_that_the_corpus_declares(folder: Path) -> None:
    row = {**TTS, "speaker": "f01", "style": "slow"}
    assert codes_of(folder, row) == []
    (folder / "domain.json").write_text(json.dumps({"speakers": ["f01"], "styles": ["plain"]}))
    findings = validate(manifest=written(folder, row))
    assert [f.code for f in findings] == ["E012"]
    assert findings[0].message == "style 'slow' is not one of plain"


@pytest.mark.parametrize(
    ("content", "code"),
    [('{"speakers": 3}', "E002"), ('{"styles": [["plain"]]}', "E002"), ("{", "E001")],
)
def test_unfit_labels_are_a_finding(folder: Path, content: str, code: str) -> None:
    (folder / "domain.json").write_text(content)
    (found,) = validate(manifest=written(folder, {**TTS, "speaker": "f01"}))
    assert (found.file, found.code) == (str(folder / "domain.json"), code)


def spoiled(folder: Path, how: str) -> None:
    path = folder / "a.wav"
    if how == "nan":
        soundfile.write(path, np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    elif how == "text":
        path.write_text("what is two plus two")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:9000])
    elif how == "8 kHz":
        write_audio(path, noise(0.5), 8000)
    elif how == "clipped":
        write_audio(path, noise(1.0, level=1.0), 16_000)
    elif how == "silent":
        write_audio(path, np.concatenate([noise(0.1), np.zeros(16_000, np.float32)]), 16_000)
    elif how == "slow":
        write_audio(path, noise(60.0), 16_000)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("nan", "E005"), ("text", "E005"), ("cut", "E005"), ("8 kHz", "W101"),
        ("clipped", "W102"), ("silent", "W102"), ("slow", "W103"),
    ],
)  # fmt: skip
def test_deep_faults_are_found_when_sound_is_opened(folder: Path, how: str, code: str) -> None:
    spoiled(folder, how)
    assert codes_of(folder, TTS) == []
    assert codes_of(folder, TTS, deep=True) == [code]


def test_an_empty_file_is_found_without_opening(folder: Path) -> None:
    (folder / "a.wav").write_bytes(b"")
    assert codes_of(folder, TTS) == ["E005"]


def test_a_stretch_outside_its_file_is_unreadable(folder: Path) -> None:
    row = chat_with({**AUDIO, "start": 0.5, "end": 1.5})
    assert codes_of(folder, row, deep=True) == ["E005"]


def test_rows_that_are_too_long(folder: Path) -> None:
    row = {**TTS, "audio": {"path": "a.wav", "start": 0.0, "end": 0.96}}  # 40 audio ids, 3 words
    assert codes_of(folder, row, max_tokens=43) == []
    assert codes_of(folder, row, max_tokens=42) == ["W104"]
    coded = {**TTS, "audio": {"codes": CODES}}  # two groups
    assert codes_of(folder, coded, max_tokens=13) == []
    assert codes_of(folder, coded, max_tokens=12) == ["W104"]


def test_the_same_sound_twice(folder: Path) -> None:
    (folder / "b.wav").write_bytes((folder / "a.wav").read_bytes())
    rows = (TTS, {**TTS, "id": "u", "audio": {"path": "b.wav"}}, {**TTS, "id": "v"})
    findings = validate(manifest=written(folder, *rows), deep=True)
    assert [(f.code, f.id) for f in findings] == [("W105", "u")]  # one path twice is no second clip


def test_a_question_that_is_trained_on_too(folder: Path) -> None:
    written(folder, CHAT, name="train.jsonl")
    assert [f.code for f in validate(manifest=written(folder, CHAT))] == ["W106"]
    other = chat_with({**AUDIO, "start": 0.0, "end": 0.5})
    assert codes_of(folder, other) == []
    assert validate(manifest=folder / "train.jsonl") == []


def test_all_findings_are_collected_with_their_lines_and_nothing_is_written(folder: Path) -> None:
    lost = {**chat_with({"type": "audio", "path": "lost.wav"}), "id": "lost", "colour": 1}
    manifest = written(folder, CHAT, "{broken", "", lost, {**TTS, "text": ""})
    before = {path: path.read_bytes() for path in folder.iterdir()}
    findings = validate(manifest=manifest, deep=True)
    assert [(f.line, f.id, f.code) for f in findings] == [
        (2, "-", "E001"), (4, "lost", "E002"), (4, "lost", "E004"), (5, "t", "E011"),
    ]  # fmt: skip
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert str(findings[2]) == (
        f"{manifest}:4 lost E004 audio file {folder / 'lost.wav'} does not exist"
    )


def test_a_finding_is_one_line_whatever_the_row_holds(folder: Path) -> None:
    row = {**chat_with({"type": "audio", "path": "a\n\x1b[2J.wav"}), "id": "c\nd"}
    for finding in validate(manifest=written(folder, row)):
        assert str(finding).isprintable()
        assert " c\\nd E00" in str(finding)


def test_the_verb_prints_all_and_fails_on_errors(folder: Path, capsys) -> None:
    manifest = written(folder, "{broken", {**TTS, "text": ""})
    with pytest.raises(UsageError, match=r"2 errors and 0 warnings in .*m\.jsonl"):
        check(manifest=manifest)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["E001", "E011"]


def test_the_verb_prints_json_and_lets_warnings_pass(folder: Path, capsys) -> None:
    manifest = written(folder, chat_with({**AUDIO, "sr": 8000}))
    check(manifest=manifest, as_json=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert Finding(**json.loads(line)).code == "W101"
    check(manifest=manifest)
    assert "0 errors and 1 warnings" in capsys.readouterr().out


def test_a_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        validate(manifest=tmp_path / "no.jsonl")
