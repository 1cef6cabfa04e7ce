"""Stages without a trainer: only the data module is asked for."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Data:
    """Stands for the data module."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def is_extra(self, batch_idx: int) -> bool:
        """No other rank needs company."""
        return False


class Trainer:
    """Stands for the trainer."""

    def __init__(self, source: Any) -> None:
        self.datamodule = Data(source)


@pytest.fixture
def attach() -> Callable[[Any, Any], Any]:
    """Give a stage its data and configure it, as the trainer would."""
    kept = []

    def configured(stage: Any, source: Any) -> Any:
        kept.append(trainer := Trainer(source))  # the stage holds it weakly
        stage.trainer = trainer
        stage.configure_model()
        return stage

    return configured


@pytest.fixture(scope="session")
def metrics() -> Callable[[Path], list[dict[str, str]]]:
    """The rows of a run's metrics.csv."""

    def read(run: Path) -> list[dict[str, str]]:
        with open(run / "metrics.csv", newline="") as handle:
            return list(csv.DictReader(handle))

    return read


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spoken questions in several voices, with their transcripts."""
    pytest.importorskip("espeakng_loader")
    from aqaa.data.synthesize import synthesize

    counts = {"questions": 48, "validation": 6, "test": 6}
    out = tmp_path_factory.mktemp("stages") / "corpus"
    return synthesize(out=out, workers=1, families=["col1"], **counts)
