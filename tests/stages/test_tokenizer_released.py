"""Training of tokenizers of the released kind, from a manifest to codes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from aqaa.audio.file import read_audio
from aqaa.errors import UsageError
from aqaa.storage import load_tensors
from aqaa.tokenizer.dual import DualTokenizer, load_book
from aqaa.tokenizer.learner import LinguisticLearner, SemanticLearner, load_learner
from aqaa.tokenizer.released import LinguisticTokenizer, SemanticTokenizer
from tests.runs import At, assert_same_run, interrupt, rows, train

STEPS = 8
TINY = {
    "linguistic": ("tokenizer.width=16", "tokenizer.blocks=2", "tokenizer.codes=64",
                   "tokenizer.inner=24", "tokenizer.heads=2"),
    "semantic": ("tokenizer.network.width=16", "tokenizer.network.blocks=1",
                 "tokenizer.network.codes=64", "tokenizer.network.inner=24",
                 "tokenizer.network.heads=2", "stage.restart_every=2", "stage.weights.mel=0.1"),
}  # fmt: skip
BOOKS = list(TINY)


def words(book: str, corpus: Path, root: Path, *more: str) -> list[str]:
    return [
        *("tokenizer", f"preset=speech/{book}_tiny", f"run.root={root}", f"run.name={book}"),
        *(f"parents.corpus={corpus}", f"run.steps={STEPS}", "run.save_every_s=1000"),
        *("trainer.log_every_n_steps=1", "trainer.val_check_interval=4", "data.batch=6"),
        "stage.codebook_batches=5",
        *TINY[book],
        *more,
    ]


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("books")
    for book in BOOKS:
        train(words(book, corpus, root))
    return root


@pytest.mark.parametrize("book", BOOKS)
def test_a_resumed_run_is_the_unbroken_one(
    book: str, corpus: Path, runs: Path, tmp_path: Path, after_step: dict[str, Any]
) -> None:
    # Step 2: the semantic book has just been started; the average is on its way in the linguistic.
    after_step["do"] = At(2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(words(book, corpus, tmp_path))
    train(words(book, corpus, tmp_path))
    assert_same_run(tmp_path / book, runs / book)
    one, two = (load_tensors(r / book / "model/heads/model.safetensors") for r in (runs, tmp_path))
    assert all(one[name].equal(two[name]) for name in one)


def test_the_loss_is_the_weighted_sum_of_its_terms(runs: Path) -> None:
    for row in rows(runs / "semantic"):
        loss = float(row["train/ctc"]) + 0.1 * float(row["train/mel"])
        loss += 0.5 * float(row["train/pitch"]) + 0.25 * float(row["train/energy"])
        loss += 0.25 * float(row["train/commitment"] or 0)
        assert float(row["train/loss"]) == pytest.approx(loss, rel=1e-5)
    started = [bool(row["train/commitment"]) for row in rows(runs / "semantic")]
    assert started == [step >= STEPS // 4 for step in range(STEPS)]
    assert all(row["train/loss"] == row["train/ctc"] for row in rows(runs / "linguistic"))
    checked = [row for row in rows(runs / "linguistic") if row["validation/character_error_rate"]]
    assert [int(row["step"]) for row in checked] == [3, 7]


def test_the_linguistic_book_is_clustered_on_the_average_of_the_weights(
    corpus: Path, runs: Path
) -> None:
    from aqaa.data.hearing import HeardBatches
    from aqaa.tokenizer.codebook import mini_batch_kmeans

    learner = load_learner(runs / "linguistic/model")
    assert isinstance(learner, LinguisticLearner)
    source = HeardBatches(corpus=str(corpus), book="linguistic", batch=6)
    clean = source.clean(5)
    vectors = torch.cat([learner.vectors(*b.inputs) for b in clean])
    expected = mini_batch_kmeans(vectors, codes=64, epochs=4, seed=0)
    assert learner.codebook.vectors.equal(expected)
    frames = torch.cat([f[:n] for b in clean for f, n in zip(b.feats, b.lengths, strict=True)])
    torch.testing.assert_close(learner.tokenizer.shift, -frames.mean(0), rtol=1e-4, atol=1e-4)


def test_the_exports_hear_a_file_whole_and_as_a_stream(corpus: Path, runs: Path) -> None:
    books = [load_book(runs / book / "model") for book in BOOKS]
    assert [type(b) for b in books] == [LinguisticTokenizer, SemanticTokenizer]
    both = DualTokenizer(*books)
    clip = torch.from_numpy(read_audio(next((corpus / "audio").iterdir())).samples)[:70_000]
    whole = both.encode(clip)
    assert len(set(whole.linguistic)) > 5 and len(set(whole.semantic)) > 5
    for size in (160, 3001, 3840):
        stream = both.stream()
        parts = [stream.push(part) for part in clip.split(size)] + [stream.finish()]
        assert sum((p.linguistic for p in parts), []) == whole.linguistic[: 2 * whole.groups]
        assert sum((p.semantic for p in parts), []) == whole.semantic[: 3 * whole.groups]


@pytest.mark.parametrize("book", BOOKS)
def test_it_goes_on_from_an_export(book: str, corpus: Path, runs: Path, tmp_path: Path) -> None:
    start = runs / book / "model"
    more = (f"parents.start_from={start}", "optim.lr=0.0", "run.steps=1")
    if book == "semantic":
        more += ("stage.codebook_at=0.9",)
    run = train(words(book, corpus, tmp_path, *more))
    before, after = (load_tensors(p / "model.safetensors") for p in (start, run / "model"))
    same = [name for name in before if "codebook" not in name]
    assert all(before[name].equal(after[name]) for name in same)
    with pytest.raises(UsageError, match="choose tokenizer=... of its size"):
        wider = TINY[book][0].replace("16", "32")
        train(words(book, corpus, tmp_path / "b", *more, wider))


def test_the_semantic_book_is_told_what_words_do_not_say(runs: Path) -> None:
    learner = load_learner(runs / "semantic/model")
    assert isinstance(learner, SemanticLearner)
    assert learner.weights == {"pitch": 0.5, "energy": 0.25, "emotion": 0.0}
    assert bool(learner.codebook.active)


def test_a_book_that_comes_at_the_wrong_time_is_refused(corpus: Path, tmp_path: Path) -> None:
    for book, at in (("linguistic", 0.5), ("semantic", 1.0)):
        with pytest.raises(UsageError, match=f"stage.codebook_at={at:g}: "):
            train(words(book, corpus, tmp_path, f"stage.codebook_at={at}"))


def test_too_little_sound_for_the_book_is_said_before_the_training(
    corpus: Path, tmp_path: Path, after_step: dict[str, Any]
) -> None:
    after_step["do"] = At(1, interrupt)
    with pytest.raises(UsageError, match="vectors cannot start 100000 codes: give more sound"):
        train(words("linguistic", corpus, tmp_path, "tokenizer.codes=100000"))
