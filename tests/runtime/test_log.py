"""metrics.csv: by step, whole after a resume."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aqaa.runtime.log import MetricsFile
from tests.conftest import ROOT, Chain


def read(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def test_figures_of_a_step_share_a_row(tmp_path: Path) -> None:
    log = MetricsFile(folder=tmp_path)
    log.log_metrics({"b": 1.5, "epoch": 0}, 3)
    log.log_metrics({"a": 0.1 + 0.2}, 3)
    log.log_metrics({"a": 2}, 1)
    log.finalize("success")
    assert read(tmp_path) == [
        {"step": "1", "a": "2.0", "b": ""},
        {"step": "3", "a": "0.30000000000000004", "b": "1.5"},
    ]


def test_a_resume_keeps_what_was_before_its_step(tmp_path: Path) -> None:
    first = MetricsFile(folder=tmp_path)
    for step in range(6):
        first.log_metrics({"a": step / 3}, step)
    first.log_metrics({"late": 1.0}, 5)
    first.write()
    again = MetricsFile(folder=tmp_path)
    again.resume(4)
    again.log_metrics({"a": 9.0}, 4)
    again.write()
    assert [(r["step"], float(r["a"])) for r in read(tmp_path)] == [
        *((str(step), step / 3) for step in range(4)),
        ("4", 9.0),
    ]
    assert list(read(tmp_path)[0]) == ["step", "a"]


def test_writing_is_seldom_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    log = MetricsFile(folder=tmp_path)
    log.save()
    assert not (tmp_path / "metrics.csv").exists()  # nothing to say
    for step, now, rows in ((0, 100.0, 1), (1, 103.0, 1), (2, 106.0, 3)):
        clock[0] = now
        log.log_metrics({"a": 1.0}, step)
        log.save()
        assert len(read(tmp_path)) == rows
    log.log_metrics({"a": 1.0}, 3)
    log.finalize("failed")
    assert len(read(tmp_path)) == 4


def test_nothing_to_resume_is_no_error(tmp_path: Path) -> None:
    MetricsFile(folder=tmp_path).resume(3)
    log = MetricsFile(folder=tmp_path)
    assert (log.name, log.version) == ("", "")


def test_weights_and_biases_gets_the_figures_and_stays_offline(
    chain: Chain, tmp_path: Path
) -> None:
    # In a process of its own, at whose end the logger writes what it has.
    words = [sys.executable, "-m", "aqaa", *chain.words("vocoder_waveform", tmp_path, "log=wandb")]
    env = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    assert "syncing is set to `offline`" in done.stderr
    (record,) = (tmp_path / "vocoder_waveform" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"train/loss" in record.read_bytes()
    assert (tmp_path / "vocoder_waveform" / "metrics.csv").is_file()
