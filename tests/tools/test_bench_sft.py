"""The documents of the sft bench have the ids they should, the second half of them to learn."""

import importlib.util
import sys

import pytest

from aqaa.data.tasks import TASKS, Material
from aqaa.signals import CodePair, Turn
from aqaa.stream import StreamLayout
from aqaa.text import TextTokenizer
from aqaa.vocabulary import Vocabulary
from tests.conftest import ROOT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("bench_sft", ROOT / "tools/bench/sft.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", [32, 33, 200, 511, 512])
def test_half_of_a_document_is_learnt(bench, size: int) -> None:
    text = TextTokenizer.train_words(["word"])
    row = bench.row(3, size, lambda n: " ".join(["word"] * n))
    answer = Turn("assistant", row["messages"][1]["content"][0]["text"], [], loss=True)
    asked = row["messages"][0]["content"][0]["text"]
    material = Material(row, Turn("human", speech=[CodePair([], [])], words=asked), answer)
    stream = StreamLayout().encode(TASKS["tqta"](material), text, Vocabulary(text.size))
    assert len(stream.ids) == size
    assert [slot > 0 for slot in stream.slots] == [i >= size // 2 for i in range(size)]


def test_the_peer_is_found_where_it_is_named(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AQAA_BENCH_VENV", "/opt/peers")
    assert str(bench.peers.python_of("sft", bench.PEERS)) == "/opt/peers/bin/python"
