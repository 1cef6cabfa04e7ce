"""The page of targets: a cell an id, bright where it is learnt, with what stands behind it."""

import re
from pathlib import Path

import pytest

from aqaa.backbone.loading import Ids
from aqaa.data.targets import Target
from aqaa.evaluation.targets_page import PAGE, TEXT, write_targets
from aqaa.signals import CodePair, Turn
from aqaa.stream import Slot
from tests.golden.make import backbone

PAIR = CodePair([11, 12], [20, 21, 22])


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Ids:
    return backbone(tmp_path_factory.mktemp("page") / "model").ids


def document(ids: Ids, name: str = "batch 0, <b>") -> Target:
    dialogue = [Turn("human", "w05"), Turn("assistant", "w01", [PAIR], loss=True)]
    stream = ids.layout.encode(dialogue, ids.text, ids.vocabulary)
    slots = stream.slots[1:]
    weight = [{Slot.NONE: 0.0, Slot.FORCED: 0.0}.get(Slot(slot), 0.5) for slot in slots]
    return Target(name, stream.ids[:-1], stream.ids[1:], slots, weight)


def test_every_id_is_a_cell_that_says_what_it_is(ids: Ids, tmp_path: Path) -> None:
    target = document(ids)
    text = write_targets(tmp_path, "a & b", [target], ids, None)
    page = (tmp_path / PAGE).read_text()
    assert text == (tmp_path / TEXT).read_text() and not (tmp_path / "audio").exists()
    cells = re.findall(r'<i class="(\w+)( on)?( bad)?" title="(\d+): after (\d+), ([^"]*)">', page)
    assert [int(at) for *_, at, _, _ in cells] == list(range(len(target.learn)))
    assert [int(read) for *_, read, _ in cells] == target.read
    assert [bool(on) for _, on, *_ in cells] == [weight > 0 for weight in target.weight]
    v = ids.vocabulary
    said = [about for *_, about in cells]
    assert said[0] == f"text {v.bot} BOT; no loss, weight 0"
    assert said[2] == f"text {ids.text.encode('w05')[0]} w05; no loss, weight 0"
    at = target.learn.index(v.semantic(21))
    assert said[at] == f"semantic {v.semantic(21)} 21; SEMANTIC, weight 0.5"
    at = target.learn.index(v.audio_start)
    assert said[at] == f"marker {v.audio_start} audio_start; FORCED, weight 0"
    assert "a &amp; b: nothing is wrong" in page and "batch 0, &lt;b&gt;" in page
    # The question's frame, word and end; the answer's frame; word, <text_end>, sound, end.
    letters = "tt" + "tt" + "tt" + "TMmLLSSSMT"
    assert re.findall(r'class="strip mask" role="img" aria-label="(\w+)"', page) == [letters]
    assert f"  {letters}" in text.splitlines()


def test_a_fault_is_marked_in_its_cell_and_counted(ids: Ids, tmp_path: Path) -> None:
    target = document(ids)
    target.slots[3] = int(Slot.TEXT)  # <|EOT|> of the question
    text = write_targets(tmp_path, "x", [target, document(ids, "whole")], ids, None)
    page = (tmp_path / PAGE).read_text()
    assert re.findall(r'<i class="\w+(?: on)? bad" title="(\d+):', page) == ["3"]
    assert "  WRONG: ids of the turn of human are learnt, at 3" in text.splitlines()
    assert text.startswith("x: 2 documents, 1 of 2 documents are wrong")
    assert page.count('class="card wrong"') == page.count('class="card right"') == 1
