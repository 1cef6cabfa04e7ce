"""One small corpus for all tests of this room."""

from pathlib import Path

import pytest

from aqaa.data.synthesize import synthesize


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 + 12 + 16 questions of every family."""
    out = tmp_path_factory.mktemp("data") / "corpus"
    return synthesize(out=out, questions=60, validation=12, test=16, seed=3, workers=2)
