"""What is kept beside a store comes back, is never taken for another's, and is never half read."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aqaa.backbone.loading import Ids
from aqaa.data import dialogues, kept, lengths
from aqaa.data.dialogues import DialogueBatches
from tests.conftest import Chain

META = {"corpus_hash": "c", "question_books": "both"}
TASKS = {"tts": {"share": 1}, "asr": {"share": 3, "where": {"meta.style": ["plain"]}}}


def store(folder: Path, **meta: str) -> Any:
    return SimpleNamespace(folder=folder / "tokens", meta={**META, **meta}, tokenizer_hash="t")


def numbers(start: int) -> dict[str, np.ndarray]:
    return {"a": np.arange(start, start + 6, dtype=np.int16), "b": np.zeros((2, 3))}


def refuse() -> dict[str, np.ndarray]:
    raise AssertionError("this is kept already")


def test_it_is_made_once_and_mapped_from_then_on(tmp_path: Path) -> None:
    rows = kept.PATIENCE_ROWS
    kept.kept(store(tmp_path), {"x": 1}, lambda: numbers(3), rows=rows)
    found = kept.kept(store(tmp_path), {"x": 1}, refuse, rows=rows)
    assert found["a"].tolist() == [3, 4, 5, 6, 7, 8] and found["a"].dtype == np.int16
    assert found["b"].shape == (2, 3) and isinstance(found["a"], np.memmap)


@pytest.mark.parametrize("other", [{"corpus_hash": "d"}, {"question_books": "linguistic"}, {}])
def test_another_corpus_or_key_is_another(tmp_path: Path, other: dict[str, str]) -> None:
    rows = kept.PATIENCE_ROWS
    kept.kept(store(tmp_path), {"x": 1}, lambda: numbers(3), rows=rows)
    key = {"x": 1} if other else {"x": 2}
    found = kept.kept(store(tmp_path, **other), key, lambda: numbers(9), rows=rows)
    assert found["a"][0] == 9


def test_of_a_small_corpus_nothing_is_kept(tmp_path: Path) -> None:
    kept.kept(store(tmp_path), {}, lambda: numbers(3), rows=kept.PATIENCE_ROWS - 1)
    assert not list(tmp_path.iterdir())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [flip, lambda p: p.write_bytes(p.read_bytes()[:-2]), lambda p: p.unlink()]
)
def test_what_is_damaged_is_made_anew(tmp_path: Path, damage: Any) -> None:
    rows = kept.PATIENCE_ROWS
    kept.kept(store(tmp_path), {}, lambda: numbers(3), rows=rows)
    (file,) = tmp_path.rglob("a.npy")
    damage(file)
    assert kept.kept(store(tmp_path), {}, lambda: numbers(20), rows=rows)["a"][0] == 20
    assert kept.kept(store(tmp_path), {}, refuse, rows=rows)["a"][0] == 20


def test_a_medium_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "tokens.kept").write_text("in the way")
    for _ in range(2):
        made = kept.kept(store(tmp_path), {}, lambda: numbers(3), rows=kept.PATIENCE_ROWS)
        assert made["a"][0] == 3


def test_the_first_rank_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "rank", lambda: 1)
    assert kept.kept(store(tmp_path), {}, lambda: numbers(3), rows=kept.PATIENCE_ROWS)["a"][0] == 3
    assert not list(tmp_path.iterdir())


@pytest.fixture
def tokens(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The chain's store, as if its corpus were large, where something can be laid beside it."""
    monkeypatch.setattr(kept, "PATIENCE_ROWS", 1)
    (tmp_path / "tokens").symlink_to(chain / "tokens")
    return tmp_path / "tokens"


@pytest.mark.parametrize("row_tokens", [512, None])
def test_a_resumed_run_counts_and_packs_nothing_again(
    chain: Chain, tokens: Path, monkeypatch: pytest.MonkeyPatch, row_tokens: int | None
) -> None:
    def start() -> DialogueBatches:
        made = DialogueBatches(corpus=str(chain / "corpus"), tokens=str(tokens), tasks=TASKS,
                               steps=9, row_tokens=row_tokens, rows=2, seed=5)  # fmt: skip
        made.bind(Ids.load(chain / "init"))
        return made

    first = start()
    drawn = [first.drawn(step) for step in (0, 1, 2, 50)]
    for room, name in ((lengths, "_count"), (dialogues, "pack"), (dialogues, "mixture")):
        monkeypatch.setattr(room, name, refuse)
    monkeypatch.setattr(dialogues, "selected", refuse)
    again = start()
    assert [again.drawn(step) for step in (0, 1, 2, 50)] == drawn
    if row_tokens is None:
        return
    shares = {**TASKS, "tts": {"share": 2}}
    for change in ({"tasks": shares}, {"seed": 6}, {"row_tokens": 600}):
        other = {"tasks": TASKS, "seed": 5, "row_tokens": row_tokens, **change}
        made = DialogueBatches(corpus=str(chain / "corpus"), tokens=str(tokens), steps=9, **other)
        with pytest.raises(TypeError):  # it wants to pack: nothing else was kept for it
            made.bind(Ids.load(chain / "init"))
    ids = Ids.load(chain / "init")
    with pytest.raises(TypeError):
        first.bind(replace(ids, layout=replace(ids.layout, question_books="linguistic")))
