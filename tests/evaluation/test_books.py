"""The report on two books: its figures against what is known of the books and of the clips."""

import json
from pathlib import Path

import pytest
import torch

from aqaa.data.utterances import Utterance
from aqaa.errors import UsageError
from aqaa.evaluation.books import hear, report
from aqaa.evaluation.books_known import Heard, Moments, known
from aqaa.storage import read_json
from aqaa.tokenizer.codebook import mini_batch_kmeans
from aqaa.tokenizer.learner import LinguisticLearner, SemanticLearner
from tests.golden.make import dual, randomise, released_dual

LETTERS = list(" 'abcdefghijklmnopqrstuvwxyz0123456789")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader")
    from aqaa.data.synthesize import synthesize

    out = tmp_path_factory.mktemp("books") / "corpus"
    counts = {"questions": 6, "validation": 8, "test": 8}
    return synthesize(out=out, workers=1, families=["col1"], **counts)


@pytest.fixture(scope="module")
def learners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both books, untrained but where the sound is, with heads."""
    root = tmp_path_factory.mktemp("learners")
    sizes = {"width": 16, "blocks": 1, "heads": 2, "inner": 24}
    network = {**sizes, "bins": 128, "positions": 1500, "codes": 64}
    told = {"labels": LETTERS, "emotions": [], "ctc_steps": 4}
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    linguistic = LinguisticLearner(kernel=5, codes=32, **sizes, **told)
    semantic = SemanticLearner(behind=1, network=network, **told)
    sound = 0.1 * torch.randn(64_000, generator=generator) * (torch.arange(64_000) / 900).sin()
    for learner in (linguistic, semantic):
        randomise(learner)
        vectors = hear(learner.tokenizer, sound).vectors.detach()
        learner.codebook.hold(mini_batch_kmeans(vectors, codes=len(learner.codebook.vectors)))
        learner.save(root / learner.book)
    return root


def test_it_says_what_was_measured_on_both(corpus: Path, learners: Path, tmp_path: Path) -> None:
    folders = {book: str(learners / book) for book in ("linguistic", "semantic")}
    out = report(corpus=str(corpus), out=str(tmp_path / "report"), clips=14, **folders)
    record = read_json(out / "report.json")
    assert record["clips"] == 14 and 0 < record["fitted"] < 14
    for book, codes in (("linguistic", 32), ("semantic", 64)):
        figures = record[book]
        counts = torch.tensor(figures["counts"]).double()
        assert len(counts) == figures["codes"] == codes
        assert figures["used"] + figures["dead"] == codes
        share = counts[counts > 0] / counts.sum()
        perplexity = float(torch.exp(-(share * share.log()).sum()))
        assert figures["perplexity"] == pytest.approx(perplexity)
        assert counts.sum() == pytest.approx(record["seconds"] * figures["rate_hz"], rel=0.03)
        assert {"continuous", "codes", "against_own"} <= set(figures["errors"])
        energy = figures["probes"]["energy"]
        assert energy["ceiling"] > 0.1 and energy["chance"] == 0
        assert figures["probes"]["label"]["n"] > 50
        assert figures["probes"]["phone"]["n"] > 50
        assert figures["probes"]["speaker"]["n"] == 14 - record["fitted"]
    page = (out / "report.html").read_text()
    for words in ("Linguistic book", "Semantic book", "Pitch, where voiced", "Who speaks"):
        assert words in page
    with pytest.raises(UsageError, match="needs six or more"):
        report(corpus=str(corpus), out=str(tmp_path / "b"), splits=["nothing"], **folders)


def test_a_tokenizer_without_heads_is_heard_all_the_same(corpus: Path, tmp_path: Path) -> None:
    for name, both in (("released", released_dual()), ("small", dual())):
        both.save(tmp_path / name)
        folders = {book: str(tmp_path / name / book) for book in ("linguistic", "semantic")}
        out = report(corpus=str(corpus), out=str(tmp_path / f"{name}_report"), clips=8, **folders)
        found = json.loads((out / "report.json").read_text())["semantic"]
        assert "no heads lie beside" in found["errors"]["reason"]
        assert found["probes"]["label"]["codes"] is None
        assert found["probes"]["energy"]["codes"] is not None
        page = (out / "report.html").read_text()
        assert "not measured: no heads lie beside" in page
        assert "not measured: no tokenizer here can write" in page


def test_vectors_that_hold_the_words_tell_the_words() -> None:
    generator = torch.Generator().manual_seed(1)
    clips, heard, said = [], [], []
    for n in range(12):
        letters = torch.randint(0, 3, (40,), generator=generator)
        vectors = torch.nn.functional.one_hot(letters, 3).float()
        # One code for two of the letters: the book has lost what tells them apart.
        heard.append(Heard(vectors, letters.clamp(max=1), torch.eye(3)[letters.clamp(max=1)]))
        clips.append(Utterance({}, 1.6, speaker="ab"[n % 2]))
        said.append(["xyz"[i] for i in letters])
    sounds = [torch.randn(40 * 640, generator=generator) for _ in clips]
    fit = torch.arange(12) % 2 == 0
    nothing = Moments([[] for _ in clips], 1.0, "nobody told")
    moments = {"label": Moments(said, 25.0), "phone": nothing}
    probes = known("semantic", clips, sounds, heard, moments, fit)
    found = probes["label"]
    assert found["ceiling"] == 1.0
    assert 0.5 < found["codes"] < 0.85 and found["chance"] < 0.45
    assert probes["phone"]["codes"] is None and probes["phone"]["reason"] == "nobody told"


def test_moments_are_looked_up_in_the_middle_of_a_code() -> None:
    moments = Moments([list("aabbcc"), []], rate_hz=50.0)
    assert moments.at(0, 4, 25.0) == ["a", "b", "c", None]
    assert moments.at(1, 2, 25.0) == [None, None]
