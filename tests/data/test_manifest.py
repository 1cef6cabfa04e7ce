"""Manifests in and out, and the sound their parts point at."""

from pathlib import Path

import numpy as np
import pytest

from aqaa.audio.file import write_audio
from aqaa.data.corpus import Corpus
from aqaa.data.manifest import Manifest, clip, read_manifest, write_manifest
from aqaa.errors import UsageError
from aqaa.storage import write_json


def test_rows_come_back(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "häuser\nzwei"}, {"id": "b", "n": [1, 2.5, None]}]
    write_manifest(tmp_path / "m.jsonl", rows)
    assert read_manifest(tmp_path / "m.jsonl") == rows
    assert len((tmp_path / "m.jsonl").read_text("utf-8").splitlines()) == 2


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": "a"}\n\n{"id": "b"}\n')
    assert [row["id"] for row in read_manifest(tmp_path / "m.jsonl")] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [("{broken", r"m\.jsonl:2 is not valid JSON"), ("[1]", r"m\.jsonl:2 is not a JSON object")],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "m.jsonl").write_text(f'{{"id": "a"}}\n{line}\n')
    with pytest.raises(UsageError, match=message):
        read_manifest(tmp_path / "m.jsonl")


def test_rows_read_one_by_one_are_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "\xc3\xa4"}\n\n  \n{"id": "b"}\r\n{"id": "c"}')
    lazy = Manifest(path)
    assert [*lazy] == lazy[:] == read_manifest(path) == [{"id": x} for x in ("ä", "b", "c")]
    assert lazy[-1] == {"id": "c"} and lazy[1:] == [{"id": "b"}, {"id": "c"}]
    with pytest.raises(IndexError):
        lazy[3]


def test_a_broken_line_is_named_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": "a"}\n\n{broken\n')
    lazy = Manifest(tmp_path / "m.jsonl")
    assert lazy[0] == {"id": "a"}
    with pytest.raises(UsageError, match=r"m\.jsonl:3 is not valid JSON"):
        lazy[1]
    with pytest.raises(UsageError, match=r"no\.jsonl does not exist"):
        Manifest(tmp_path / "no.jsonl")


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.jsonl does not exist"):
        read_manifest(tmp_path / "no.jsonl")


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_manifest(tmp_path / "m.jsonl", [{"id": "a", "x": float("nan")}])
    assert not list(tmp_path.iterdir())


def test_a_clip_is_its_stretch_or_the_whole_file(tmp_path: Path) -> None:
    samples = np.linspace(-0.5, 0.5, 16_000, dtype=np.float32)
    write_audio(tmp_path / "a.wav", samples, 16_000)
    part = {"path": "a.wav", "start": 0.25, "end": 0.5}
    np.testing.assert_allclose(clip(part, tmp_path).samples, samples[4000:8000], atol=1e-4)
    assert len(clip({"path": "a.wav"}, tmp_path).samples) == 16_000
    with pytest.raises(UsageError, match="names no file"):
        clip({"codes": {}}, tmp_path)


def test_no_sound_is_read_outside_the_manifests_folder(tmp_path: Path) -> None:
    inside = tmp_path / "corpus"
    inside.mkdir()
    write_json(inside / "domain.json", {})
    for folder in (tmp_path, inside):
        write_audio(folder / "a.wav", np.full(16_000, 0.1, np.float32), 16_000)
    (inside / "link.wav").symlink_to(tmp_path / "a.wav")
    outside = ("../a.wav", "x/../../a.wav", str(tmp_path / "a.wav"), "link.wav", "a\0.wav")
    for path in outside:
        for read in (Corpus(inside).samples, lambda part: clip(part, inside)):
            with pytest.raises(UsageError, match="does not lie below .*: copy it there") as info:
                read({"path": path, "start": 0.0, "end": 0.5})
            assert "\n" not in str(info.value)
    for path in ("a.wav", "./a.wav", str(inside / "a.wav")):
        assert len(clip({"path": path}, inside).samples) == 16_000


UNFIT = [
    '{"a": NaN}', '{"a": -Infinity}', "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900,
    '{"a": ' + "9" * 5000 + "}", '{"id": "\\ud800"}',
]  # fmt: skip


@pytest.mark.parametrize("line", UNFIT, ids=range(len(UNFIT)))
def test_a_line_that_no_reader_can_use_is_a_sentence(tmp_path: Path, line: str) -> None:
    (tmp_path / "m.jsonl").write_text(line)
    with pytest.raises(UsageError, match=r"m\.jsonl:1 is not ") as info:
        read_manifest(tmp_path / "m.jsonl")
    assert "\n" not in str(info.value)


def test_a_line_of_other_bytes_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(b'{"id": "\xff"}')
    with pytest.raises(UsageError, match="is not valid JSON"):
        read_manifest(tmp_path / "m.jsonl")
