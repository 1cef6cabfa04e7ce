"""`aqaa evaluate`: every row once, judged, summed up, written as a whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqaa import cli
from aqaa.answer import bundle
from aqaa.audio.file import read_audio
from aqaa.data.corpus import Corpus, answer_text
from aqaa.data.manifest import read_manifest
from aqaa.errors import UsageError
from aqaa.evaluation.evaluate import evaluate, plain_clips
from aqaa.evaluation.measure import summarise
from aqaa.evaluation.prosody import prosody
from aqaa.pipeline import Pipeline, Reply
from aqaa.signals import Waveform
from aqaa.storage import read_json, verify_manifest
from tests.conftest import Chain

pytest.importorskip("pocketsphinx", reason="pocketsphinx of the demo extra is not installed")
pytest.importorskip("parselmouth", reason="parselmouth of the demo extra is not installed")


def organs(chain: Chain) -> dict[str, str]:
    return {
        "tokenizer": f"{chain.folder}/tokens/tokenizer",
        "backbone": f"{chain.folder}/merge/model",
        "flow": f"{chain.folder}/vocoder_flow/model",
        "waveform": f"{chain.folder}/vocoder_waveform/model",
    }


@pytest.fixture(scope="module")
def corpus(chain: Chain) -> Corpus:
    return Corpus(chain / "corpus")


@pytest.fixture(scope="module")
def whole(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All test rows, with yardsticks."""
    out = tmp_path_factory.mktemp("evaluate") / "whole"
    settings: dict[str, Any] = {"corpus": str(chain / "corpus"), "organs": organs(chain)}
    return evaluate(**settings, out=str(out), name="merge", yardsticks=True)


def rows(folder: Path) -> list[dict[str, Any]]:
    return read_manifest(folder / "answers.jsonl")


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The rows without the wall time, which is never twice the same."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(folder)]


def test_the_folder_is_sealed_and_holds_what_the_rows_name(whole: Path, corpus: Corpus) -> None:
    assert verify_manifest(whole)
    assert [row["id"] for row in rows(whole)] == [row["id"] for row in corpus.rows("test")]
    for row in rows(whole):
        assert (whole / row["question"]).is_file()
        assert not row["answer"] or (whole / row["answer"]).is_file()
        assert row["heard"] in ("", *corpus.domain["answers"]) and row["model"] == "merge"


def test_results_sum_the_rows_up(whole: Path) -> None:
    results = read_json(whole / "results.json")
    flat, details = summarise(rows(whole))
    assert results["details"] == details
    assert {k: v for k, v in results.items() if k not in ("details", "control")} == flat
    assert results["control"].keys() == {"slow", "quick", "high", "low"}
    n = len(rows(whole))
    heard = sum(row["heard"] == row["expected"] for row in rows(whole))
    assert details["answers_correct"]["n"] == n
    assert details["answers_correct"]["value"] == heard / n


def test_yardsticks_lie_beside(whole: Path, corpus: Corpus) -> None:
    found = read_json(whole / "yardsticks.json")
    plain = found.pop("plain")
    assert found.keys() == {
        "ground_truth_recognised", "resynthesis_recognised", "tokenizer_ceiling",
    }  # fmt: skip
    assert found["ground_truth_recognised"]["value"] > 0.9
    clips = len(corpus.answers)
    assert [found[k]["n"] for k in sorted(found)] == [clips, clips, len(corpus.rows("test"))]
    assert plain == {k: vars(v) for k, v in plain_clips(corpus).items()}


def test_plain_clips_are_those_of_answers_that_come_in_styles(corpus: Corpus) -> None:
    clips = plain_clips(corpus)
    styles = {text: set() for text in (r["text"] for r in corpus.answers.values())}
    for row in corpus.answers.values():
        styles[row["text"]].add(row["style"])
    assert clips.keys() == {text for text, found in styles.items() if found > {"plain"}}
    row = next(r for r in corpus.answers.values() if r["style"] == "plain" and r["text"] in clips)
    assert clips[row["text"]] == prosody(corpus.samples(row["audio"]).numpy(), 16_000)


def test_shards_cover_every_row_once(chain: Chain, whole: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"corpus": str(chain / "corpus"), "organs": organs(chain)}
    parts = [
        evaluate(**settings, out=str(tmp_path / f"{k}"), name="merge", rows=3, shard=f"{k}/2")
        for k in range(2)
    ]
    found = {row["id"]: row for part in parts for row in timeless(part)}
    assert [len(rows(part)) for part in parts] == [2, 1]
    # The same model asked the same question says the same, alone or among others.
    assert found == {row["id"]: row for row in timeless(whole)[:3]}
    assert not (parts[0] / "yardsticks.json").exists()


def test_a_whole_model_gives_the_same_rows(chain: Chain, whole: Path, tmp_path: Path) -> None:
    bundle(organs=organs(chain), out=str(tmp_path / "model"))
    out = tmp_path / "out"
    corpus, model = str(chain / "corpus"), str(tmp_path / "model")
    evaluate(corpus=corpus, model=model, out=str(out), name="merge", rows=2)
    assert timeless(out) == timeless(whole)[:2]


def test_figures_name_the_split_they_were_taken_on(chain: Chain, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"corpus": str(chain / "corpus"), "organs": organs(chain)}
    for split, said in (("train", "training"), ("validation", "unseen")):
        out = evaluate(**settings, out=str(tmp_path / split), split=split, rows=1)
        for figure in read_json(out / "results.json")["details"].values():
            assert figure["split"].startswith(f"{split}, {said} voices")


def test_the_plain_clips_are_measured_once(
    chain: Chain, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Corpus] = []
    monkeypatch.setattr(
        "aqaa.evaluation.evaluate.plain_clips", lambda source: calls.append(source) or {}
    )
    monkeypatch.setattr("aqaa.evaluation.evaluate.measure_yardsticks", lambda *_: {})
    settings: dict[str, Any] = {"corpus": str(chain / "corpus"), "organs": organs(chain)}
    evaluate(**settings, out=str(tmp_path / "out"), rows=1, yardsticks=True)
    assert len(calls) == 1


def test_a_silent_answer_counts_as_wrong_and_a_right_one_as_right(
    chain: Chain, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = corpus.rows("test")[:3]
    clips = {
        row["text"]: corpus.samples(row["audio"]).numpy()
        for row in corpus.answers.values()
        if row["style"] == "plain"
    }
    right, wrong = answer_text(asked[1]), next(t for t in clips if t != answer_text(asked[2]))
    replies = iter([
        Reply(answer_text(asked[0]), [], None, True),
        Reply(right, [], Waveform(clips[right], 16_000), True),
        Reply(answer_text(asked[2]), [], Waveform(clips[wrong], 16_000), True),
    ])  # fmt: skip
    monkeypatch.setattr(Pipeline, "reply", lambda *_, **__: next(replies))
    out = tmp_path / "out"
    evaluate(corpus=str(chain / "corpus"), organs=organs(chain), out=str(out), rows=3)
    assert [row["heard"] for row in rows(out)] == ["", right, wrong]
    results = read_json(out / "results.json")
    assert results["text_correct"] == 1.0
    assert results["answers_correct"] == results["text_audio_agreement"] == pytest.approx(1 / 3)
    said = read_audio(out / rows(out)[1]["answer"]).samples
    assert np.abs(said - clips[right]).max() < 2 / 2**15


def test_errors_of_use_are_one_sentence_and_leave_nothing(chain: Chain, tmp_path: Path) -> None:
    good: dict[str, Any] = {"corpus": str(chain / "corpus"), "organs": organs(chain)}
    for settings, sentence in (
        ({"organs": None}, "give model=FOLDER, or all four organs; missing: organs.tokenizer, "
                           "organs.backbone, organs.flow, organs.waveform"),
        ({"organs": {**organs(chain), "flow": None}}, "missing: organs.flow"),
        ({"model": str(tmp_path), "organs": None}, "is not a whole model: it lacks tokenizer"),
        ({"corpus": str(tmp_path)}, "is not a corpus"),
        ({"split": "exam"}, "exam.jsonl"),
        ({"shard": "1"}, "shard=1 is not of the form k/n"),
        ({"shard": "a/b"}, "shard=a/b is not of the form k/n"),
        ({"shard": "2/2"}, "shard=2/2: k must lie in 0..n-1"),
        ({"shard": "0/0"}, "shard=0/0: k must lie in 0..n-1"),
        ({"rows": 0}, "rows=0: at least one question is needed"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as info:
            evaluate(**{**good, **settings}, out=str(tmp_path / "out"))
        assert sentence in str(info.value) and "\n" not in str(info.value)
        assert not (tmp_path / "out").exists()


def test_the_command_line_says_which_organ_is_missing(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")
    words = [f"organs.{k}={v}" for k, v in organs(chain).items() if k != "backbone"]
    words += [f"corpus={chain / 'corpus'}", f"out={tmp_path / 'out'}", "shard=0/2"]
    assert cli.main(["evaluate", *words]) == 2
    said = capsys.readouterr().err
    assert "missing: organs.backbone" in said and said.count("\n") == 1
