"""Manifests in and out, and the sound their parts point at."""

from pathlib import Path

import numpy as np
import pytest

from aqaa.audio.file import write_audio
from aqaa.data.manifest import clip, read_manifest, write_manifest
from aqaa.errors import UsageError


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
    [("{broken", r"m\.jsonl:2 is not valid JSON"), ("[1]", r"m\.jsonl:2 must be a JSON object")],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "m.jsonl").write_text(f'{{"id": "a"}}\n{line}\n')
    with pytest.raises(UsageError, match=message):
        read_manifest(tmp_path / "m.jsonl")


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
