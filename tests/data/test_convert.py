"""Converters: there and back is what it was where a format can hold it; else it is said."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from aqaa.data.convert import FORMATS, convert
from aqaa.data.corpus import Corpus, question_part
from aqaa.data.manifest import clip, read_manifest, write_manifest
from aqaa.data.validate import validate
from aqaa.errors import UsageError
from aqaa.storage import verify_manifest

TEXT = {"type": "text", "text": "Four!"}


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """A folder of sound: two short files and one long one to cut stretches from."""
    folder = tmp_path / "in"
    (folder / "s").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("a b.wav", 4000), ("é.flac", 5000), ("long.wav", 32_000)):
        samples = rng.integers(-9000, 9000, count).astype(np.int16)
        soundfile.write(str(folder / "s" / name), samples, 16_000, subtype="PCM_16")
    return folder


def clips() -> list[dict[str, Any]]:
    return [
        {"id": "u1", "kind": "asr", "text": "one two", "audio": {"path": "s/a b.wav"},
         "speaker": "f01"},
        {"id": "u2", "kind": "asr", "text": "three é", "audio": {"path": "s/é.flac"},
         "speaker": "f02"},
    ]  # fmt: skip


def stretches() -> list[dict[str, Any]]:
    """Times that do not fall on samples, and such that do."""
    return [
        {"id": f"v{i}", "kind": "asr", "text": "five", "speaker": "f01",
         "audio": {"path": "s/long.wav", "start": a, "end": b}}
        for i, (a, b) in enumerate(((0.0, 0.5), (0.1234567, 0.7), (0.5, 2.0)))
    ]  # fmt: skip


def chats(spoken: bool = True) -> list[dict[str, Any]]:
    heard = {"type": "audio", "path": "s/a b.wav"}
    said = [TEXT, {"type": "audio", "path": "s/é.flac"}] if spoken else [TEXT]
    first = [
        {"role": "system", "content": [{"type": "text", "text": "You are calm."}]},
        {"role": "user", "content": [{"type": "text", "text": "Listen: "}, heard]},
        {"role": "assistant", "content": said},
    ]
    more = [{"role": "user", "content": [heard]}, {"role": "assistant", "content": [TEXT]}]
    return [
        {"id": "c1", "kind": "chat", "messages": first},
        {"id": "c2", "kind": "chat", "messages": [*first, *more]},
    ]


def pairs() -> list[dict[str, Any]]:
    chat = chats()[0]["messages"]
    worse = [{"type": "text", "text": "Five?"}, {"type": "audio", "path": "s/long.wav"}]
    return [
        {"id": "p1", "kind": "preference", "prompt": chat[:-1], "chosen": chat[-1:],
         "rejected": [{"role": "assistant", "content": worse}]},
        {"id": "p2", "kind": "preference", "prompt": chat[:-1], "chosen": chat[-1:],
         "rejected": [{"role": "assistant", "content": [TEXT]}]},
    ]  # fmt: skip


def plain() -> list[dict[str, Any]]:
    return [{"id": "t", "kind": "text", "text": "only words", "meta": {"x": [1]}}]


def sound(part: dict[str, Any], root: Path) -> bytes:
    return clip(part, root).samples.tobytes()


def content(rows: list[dict[str, Any]], root: Path, *, cut: bool = False) -> list[Any]:
    """Rows with sound in the place of paths; where stretches are cut, without their times."""

    def held(value: Any) -> Any:
        if isinstance(value, list):
            return [held(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "path" not in value:
            return {key: held(item) for key, item in value.items()}
        times = ("start", "end") if cut else ()
        rest = {k: v for k, v in value.items() if k != "path" and k not in times}
        return {**rest, "sound": sound(value, root)}

    return [held(row) for row in rows]


CASES: list[tuple[str, Callable[[], list[dict[str, Any]]], bool]] = [
    ("aqaa", lambda: clips() + stretches() + chats() + pairs() + plain(), False),
    ("swift", lambda: chats() + pairs(), False),
    ("llamafactory", chats, False),
    ("kimi", chats, False),
    ("kaldi", clips, False),
    ("kaldi", stretches, False),
    ("hf", clips, False),
    ("hf", stretches, True),
    ("lhotse", lambda: clips() + stretches(), False),
    ("tar", lambda: clips() + chats() + pairs() + plain(), False),
    ("tar", stretches, True),
]


def made(folder: Path) -> Path:
    """What to read again of a conversion: its one file, or the folder."""
    files = [p for p in folder.iterdir() if p.suffix in (".jsonl", ".json")
             and p.name != "dataset_info.json"]  # fmt: skip
    inner = [p for p in folder.iterdir() if p.is_dir() and (p / "state.json").is_file()]
    return (files or inner or [folder])[0]


@pytest.mark.parametrize(("name", "rows", "cut"), CASES)
def test_there_and_back_is_what_it_was(
    name: str, rows: Callable[[], list[dict[str, Any]]], cut: bool, speech: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = speech / "data.jsonl"
    write_manifest(source, rows())
    there = convert(source=str(source), out=str(tmp_path / "there"), writes=name)
    assert verify_manifest(there)
    said = capsys.readouterr().out
    assert ("without start and end" in said) is cut and ("lost" not in said), said
    back = convert(source=str(made(there)), out=str(tmp_path / "back"), reads=name)
    (found,) = back.glob("*.jsonl")
    expected = content(rows(), speech, cut=cut)
    got = content(read_manifest(found), back, cut=cut)
    assert sorted(got, key=lambda r: r["id"]) == sorted(expected, key=lambda r: r["id"])
    assert not [f for f in validate(manifest=found, deep=True) if f.code.startswith("E")]


def test_every_format_that_is_written_goes_there_and_back() -> None:
    assert {name for name, *_ in CASES} == {n for n, f in FORMATS.items() if f.write and f.read}


def test_sound_is_not_encoded_anew(speech: Path, tmp_path: Path) -> None:
    write_manifest(speech / "data.jsonl", clips())
    there = convert(source=str(speech / "data.jsonl"), out=str(tmp_path / "tar"), writes="tar")
    back = convert(source=str(there), out=str(tmp_path / "back"), reads="tar")
    files = sorted(p.read_bytes() for p in (back / "audio").iterdir())
    assert files == sorted((speech / "s" / n).read_bytes() for n in ("a b.wav", "é.flac"))
    assert not (there / "audio").exists()


def test_what_is_lost_is_said(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = clips() + chats()
    rows[0] |= {"style": "sad", "meta": {"a": 1}}
    rows[2]["messages"][2]["speaker"] = "f01"
    write_manifest(speech / "data.jsonl", rows)
    for name in ("kaldi", "kimi"):
        convert(source=str(speech / "data.jsonl"), out=str(tmp_path / name), writes=name)
    said = capsys.readouterr().out
    assert "kaldi holds clips and their words; dialogues, pairs and texts are lost (2 rows)" in said
    assert "kaldi has no place for 'style' (1 rows)" in said
    assert "kaldi has no place for 'meta' (1 rows)" in said
    assert "kimi holds dialogues; rows of other kinds are lost (2 rows)" in said
    assert "kimi has no place for 'speaker' of a turn (2 rows)" in said


def test_librispeech_is_read(speech: Path, tmp_path: Path) -> None:
    chapter = speech / "84/121123"
    chapter.mkdir(parents=True)
    for number in range(2):
        data = (speech / "s/é.flac").read_bytes()
        (chapter / f"84-121123-{number:04}.flac").write_bytes(data)
    lines = "84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT\n"
    (chapter / "84-121123.trans.txt").write_text(lines)
    out = convert(source=str(speech), out=str(tmp_path / "out"), reads="librispeech")
    first, second = read_manifest(out / "data.jsonl")
    assert (first["id"], first["text"]) == ("84-121123-0000", "GO DO YOU HEAR")
    assert first["speaker"] == "84" and second["text"] == "BUT"
    (chapter / "84-121123.trans.txt").write_text(lines + "84-121123-0002 NO SOUND\n")
    with pytest.raises(UsageError, match=r"trans.txt:3: 84-121123-0002 has no sound file beside"):
        convert(source=str(speech), out=str(tmp_path / "x"), reads="librispeech")


def test_a_corpus_is_made_of_clips_and_of_dialogues(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**clips()[i % 2], "id": f"u{i}"} for i in range(30)]
    rows += [{**chat, "id": f"{chat['id']}-{i}"} for i in range(10) for chat in chats()]
    rows.append({**stretches()[0], "id": "short", "audio": {"path": "s/long.wav", "end": 0.1}})
    heard = rows[30]["messages"][1]["content"][1]
    assert heard["type"] == "audio"
    write_manifest(speech / "data.jsonl", rows)
    out = convert(source=str(speech / "data.jsonl"), out=str(tmp_path / "c"), writes="corpus")
    said = capsys.readouterr().out
    assert "follows the last spoken answer of a dialogue is lost (10 rows)" in said
    assert "silent or below 0.12 s; their rows are lost (1 rows)" in said
    corpus = Corpus(out)
    counts = {split: len(corpus.rows(split)) for split in ("train", "validation", "test")}
    assert counts == corpus.domain["counts"] == {"train": 44, "validation": 3, "test": 3}
    assert len(corpus.answers) == 50 and not (out / "audio/train_0001.wav").exists()
    for split in counts:
        for row in corpus.rows(split):
            answer = corpus.answers[row["meta"]["answer_id"]]
            question = question_part(row)
            clip_row = "one two" in question["text"] or "three" in question["text"]
            assert (question["path"] == answer["audio"]["path"]) is clip_row
            for part in (question, answer["audio"]):
                samples = corpus.samples(part)
                assert len(samples) % 1920 == 0 and abs(float(samples.abs().max()) - 0.5) < 1e-3
        found = validate(manifest=out / f"{split}.jsonl", deep=True)
        assert not [f for f in found if f.code.startswith("E")], found
    assert {"one", "two", "Four!", "Listen:"} <= set(corpus.domain["words"])
    assert set(corpus.domain["phones"]) >= {p for r in corpus.answers.values()
                                            for p in r["audio"]["phones"]}  # fmt: skip


def test_dialects_of_others_are_read(speech: Path, tmp_path: Path) -> None:
    sound_file = str(speech / "s/a b.wav")
    swift = [
        {"messages": [{"role": "user", "content": "<audio>what?"},
                      {"role": "assistant", "content": "Four!", "loss": True}],
         "audios": ["s/a b.wav"]},
        {"query": "no"},
    ]  # fmt: skip
    shared = [{"conversations": [{"from": "human", "value": "<audio>"}],
               "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"},
               "system": "Be kind.", "audios": [sound_file]}]  # fmt: skip
    (speech / "swift.jsonl").write_text(json.dumps(swift[0]) + "\n")
    (speech / "shared.json").write_text(json.dumps(shared))
    (speech / "kimi.jsonl").write_text(json.dumps([
        {"role": "user", "message_type": "text", "content": "Listen."},
        {"role": "user", "message_type": "audio", "content": sound_file},
        {"role": "assistant", "message_type": "audio-text", "content": ["s/é.flac", "Four!"]},
    ]) + "\n")  # fmt: skip

    def rows(name: str, reads: str) -> list[dict[str, Any]]:
        out = convert(source=str(speech / name), out=str(tmp_path / name), reads=reads)
        return read_manifest(out / f"{name.split('.')[0]}.jsonl")

    (chat,) = rows("swift.jsonl", "swift")
    assert [p["type"] for p in chat["messages"][0]["content"]] == ["audio", "text"]
    assert chat["messages"][1]["loss"] is True and chat["id"] == "swift-0000000"
    (pair,) = rows("shared.json", "llamafactory")
    assert [m["role"] for m in pair["prompt"]] == ["system", "user"]
    assert pair["rejected"][0]["content"] == [{"type": "text", "text": "b"}]
    (talk,) = rows("kimi.jsonl", "kimi")
    assert [m["role"] for m in talk["messages"]] == ["user", "assistant"]
    assert [p["type"] for p in talk["messages"][1]["content"]] == ["text", "audio"]


def test_datasets_of_others_bring_bytes_or_paths(speech: Path, tmp_path: Path) -> None:
    import pyarrow
    from datasets import Audio, Dataset, DatasetDict, Features, Value
    from pyarrow import parquet

    file = speech / "s/a b.wav"
    features = Features({"audio": Audio(), "sentence": Value("string")})
    named = [{"audio": {"path": str(file), "bytes": None}, "sentence": "by path"}]
    held = [{"audio": {"path": None, "bytes": file.read_bytes()}, "sentence": "by bytes"}]
    tables = [pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
              for rows in (named, held)]  # fmt: skip
    splits = {"train": Dataset(tables[0]), "test": Dataset(tables[1])}
    DatasetDict(splits).save_to_disk(str(tmp_path / "hub"))
    parquet.write_table(tables[1], tmp_path / "part.parquet")
    for source, expected in (("hub", ["by bytes", "by path"]), ("part.parquet", ["by bytes"])):
        out = convert(source=str(tmp_path / source), out=str(tmp_path / f"o-{source}"), reads="hf")
        rows = read_manifest(next(out.glob("*.jsonl")))
        assert sorted(row["text"] for row in rows) == expected
        for row in rows:
            assert (out / row["audio"]["path"]).read_bytes() == file.read_bytes()
    Dataset.from_dict({"x": [1]}).save_to_disk(str(tmp_path / "mute"))
    with pytest.raises(UsageError, match="has no column of sound; it has x"):
        convert(source=str(tmp_path / "mute"), out=str(tmp_path / "o"), reads="hf")


def test_lhotse_cuts_count_from_their_start(speech: Path, tmp_path: Path) -> None:
    recording = {"id": "r", "sampling_rate": 16_000, "num_samples": 32_000, "duration": 2.0,
                 "sources": [{"type": "file", "channels": [0],
                              "source": str(speech / "s/long.wav")}]}  # fmt: skip
    cut = {"id": "c", "type": "MonoCut", "start": 0.5, "duration": 1.0, "channel": 0,
           "recording": recording, "supervisions": [
               {"id": "s", "recording_id": "r", "start": 0.25, "duration": 0.5, "text": "hi"}]}
    file = speech / "cuts.jsonl.gz"  # fmt: skip

    def read(record: dict[str, Any]) -> dict[str, Any]:
        file.write_bytes(gzip.compress(json.dumps(record).encode()))
        out = convert(source=str(file), out=str(tmp_path / "out"), reads="lhotse")
        (row,) = read_manifest(out / "cuts.jsonl")
        return row

    part = read(cut)["audio"]
    assert (part["start"], part["end"]) == (0.75, 1.25)
    for change, sentence in (
        ({"type": "MixedCut"}, "cuts.jsonl.gz:1: a MixedCut without a recording"),
        ({"recording": {**recording, "sources": [{"type": "command", "source": "rm -rf /"}]}},
         "sound of .'command'. is not read"),
        ({"start": "x"}, "'x' is no number of seconds"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=sentence):
            read({**cut, **change})
    file.write_bytes(gzip.compress(json.dumps(cut).encode())[:60])
    with pytest.raises(UsageError, match="cannot be read on"):
        convert(source=str(file), out=str(tmp_path / "x"), reads="lhotse")


def write_tar(path: Path, *members: tuple[str, bytes, str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data, link in members:
            info = tarfile.TarInfo(name)
            info.size = 0 if link else len(data)
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info, io.BytesIO(data))


def test_a_foreign_shard_is_read_and_members_never_lead_astray(
    speech: Path, tmp_path: Path
) -> None:
    wav, shard = (speech / "s/a b.wav").read_bytes(), tmp_path / "x.tar"
    write_tar(shard, ("d/1.wav", wav, ""), ("d/1.txt", b"words\n", ""),
              ("d/2.json", b'{"text": "more"}', ""), ("d/2.wav", wav, ""))  # fmt: skip
    out = convert(source=str(shard), out=str(tmp_path / "out"), reads="tar")
    assert [(r["id"], r["text"]) for r in read_manifest(out / "x.jsonl")] == [
        ("1", "words"), ("2", "more")]  # fmt: skip
    named = json.dumps({"id": "a", "text": "x", "audio": {"path": "../../secret.wav"}}).encode()
    for members, sentence in (
        ([("../1.wav", wav, "")], "leads out of the archive"),
        ([("/etc/1.wav", wav, "")], "leads out of the archive"),
        ([("1.wav", b"", "/etc/passwd")], "is a link, a device or too large"),
        ([("1.wav", wav, ""), ("1.flac", wav, "")], "has 2 sound files: one is needed"),
        ([("1.json", named, ""), ("1.wav", wav, "")], "names '../../secret.wav', which is not in"),
    ):
        write_tar(shard, *members)
        with pytest.raises(UsageError, match=sentence):
            convert(source=str(shard), out=str(tmp_path / "bad"), reads="tar")
        assert not (tmp_path / "bad").exists()
    shard.write_bytes(b"no tar at all")
    with pytest.raises(UsageError, match="x.tar is damaged or no tar archive"):
        convert(source=str(shard), out=str(tmp_path / "bad"), reads="tar")


BAD: list[tuple[str, str, str, str]] = [
    ("swift", "d.jsonl", '{"messages": []}', r"d.jsonl:1 has no messages"),
    ("swift", "d.jsonl", "\n{", r"d.jsonl:2 is not valid JSON"),
    ("swift", "d.jsonl", '{"messages": [{"role": "user", "content": "<audio>"}]}',
     "d.jsonl:1 says <audio> more often than it names sound files"),
    ("swift", "d.jsonl", '{"messages": [{"role": "user", "content": "x"}], "audios": ["s/é.flac"]}',
     "d.jsonl:1 names 1 sound files more than it says <audio>"),
    ("swift", "d.jsonl", '{"messages": [{"role": "user", "content": "x"}], "audios": ["no.wav"]}',
     r"d.jsonl:1: the sound file .*no.wav does not exist"),
    ("swift", "d.jsonl", '{"messages": [{"role": "tool", "content": "x"}]}', "role 'tool'"),
    ("swift", "d.jsonl", '{"messages": [{"role": "user", "content": "x"}]}', "d.jsonl:1 E003"),
    ("llamafactory", "d.json", "{}", "d.json is not a list of samples"),
    ("kimi", "d.jsonl", '{"conversation": 3}', "d.jsonl:1 has no conversation of messages"),
    ("kimi", "d.jsonl", '[{"role": "user", "message_type": "video", "content": "x"}]',
     "d.jsonl:1: a message of type 'video'"),
    ("kaldi", "wav.scp", "u sox x.wav -t wav - |", "wav.scp:1: u is a command, not a file"),
    ("kaldi", "wav.scp", "u ark.ark:123", "wav.scp:1: u is no sound file of its own"),
    ("kaldi", "wav.scp", "u a.wav\nu b.wav", "wav.scp:2: u stands twice, first in .*wav.scp:1"),
    ("kaldi", "wav.scp", "u", "wav.scp:1: u stands alone"),
    ("kaldi", "wav.scp", "u nowhere.wav", "the sound file .*nowhere.wav does not exist"),
    ("lhotse", "recordings.jsonl", "{}", "holds neither cuts nor recordings with supervisions"),
    ("hf", "x", "", "is no dataset that can be read"),
    ("tar", "x", "", r"holds no \*.tar"),
    ("librispeech", "x", "", "holds no .*trans.txt"),
    ("aqaa", "d.jsonl", '{"id": "a", "text": "x", "audio": {"path": "../../x.wav"}}',
     "does not lie below"),
    ("aqaa", "d.jsonl", '{"id": "a"}', "d.jsonl:1 E002 kind None is not one of"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "text", "sentence"), BAD)
def test_bad_input_is_refused_with_file_and_line(
    name: str, file: str, text: str, sentence: str, speech: Path, tmp_path: Path
) -> None:
    (speech / file).write_text(text)
    source = speech if name in ("kaldi", "lhotse", "hf", "tar", "librispeech") else speech / file
    with pytest.raises(UsageError, match=sentence):
        convert(source=str(source), out=str(tmp_path / "out"), reads=name)
    assert not (tmp_path / "out").exists()


def test_errors_of_use(speech: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no format nemo; there are aqaa, swift"):
        convert(source=str(speech), out=str(tmp_path / "o"), reads="nemo")
    with pytest.raises(UsageError, match="aqaa cannot write librispeech"):
        convert(source=str(speech), out=str(tmp_path / "o"), writes="librispeech")
    with pytest.raises(UsageError, match="nowhere does not exist"):
        convert(source="nowhere", out=str(tmp_path / "o"))
    (speech / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="there is no row to convert"):
        convert(source=str(speech / "empty.jsonl"), out=str(tmp_path / "o"))
