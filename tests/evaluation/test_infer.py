"""Answer rows: what was asked, what was written and said, the stream as a strip of tokens."""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqaa.audio.file import read_audio
from aqaa.data.corpus import Corpus, answer_text, question_part
from aqaa.errors import UsageError
from aqaa.evaluation.infer import infer, tokens
from aqaa.pipeline import Pipeline, Reply
from aqaa.signals import Waveform
from aqaa.vocabulary import MARKERS
from tests.conftest import Chain

KEYS = {"id", "model", "question", "question_text", "expected", "text", "answer", "complete",
        "family", "style", "voice", "held_out", "tokens", "duration_s",
        "seconds"}  # fmt: skip


def organs(chain: Chain) -> dict[str, str]:
    return {
        "tokenizer": f"{chain.folder}/tokens/tokenizer",
        "backbone": f"{chain.folder}/merge/model",
        "flow": f"{chain.folder}/vocoder_flow/model",
        "waveform": f"{chain.folder}/vocoder_waveform/model",
    }


@pytest.fixture(scope="module")
def pipeline(chain: Chain) -> Pipeline:
    return Pipeline.from_folders(**organs(chain))


@pytest.fixture(scope="module")
def corpus(chain: Chain) -> Corpus:
    return Corpus(chain / "corpus")


def test_rows_say_what_was_asked_and_answered(
    pipeline: Pipeline, corpus: Corpus, tmp_path: Path
) -> None:
    asked = corpus.rows("test")[:3]
    rows = list(infer(pipeline, corpus, asked, model="merge", out=tmp_path))
    for row, source in zip(rows, asked, strict=True):
        assert row.keys() == KEYS
        assert (row["id"], row["model"]) == (source["id"], "merge")
        assert row["question_text"] == question_part(source)["text"]
        assert row["expected"] == answer_text(source)
        assert {k: row[k] for k in ("family", "style", "voice", "held_out")} == {
            k: source["meta"][k] for k in ("family", "style", "voice", "held_out")
        }
        heard = read_audio(tmp_path / row["question"])
        original = corpus.samples(question_part(source)).numpy()
        assert np.abs(heard.samples - original).max() < 2 / 2**15
        reply = pipeline.reply(pipeline.listen(heard))
        assert row["text"] == reply.text and row["complete"] == reply.complete
        assert (row["answer"] == "") == (reply.sound is None)
        if reply.sound is not None:
            assert row["duration_s"] == read_audio(tmp_path / row["answer"]).duration_s


def strip_ids(strip: list[list[Any]], pipeline: Pipeline) -> list[int]:
    """The ids a strip stands for."""
    ids = pipeline.backbone.ids
    vocabulary = ids.vocabulary
    words = {ids.text.decode([i]): i for i in reversed(range(vocabulary.text_tokens))}
    marks = {name: vocabulary.marker_start + i for i, name in enumerate(MARKERS)}
    marks["<|EOT|>"] = vocabulary.eot
    of = {"text": words.__getitem__, "marker": marks.__getitem__}
    of |= {"linguistic": vocabulary.linguistic, "semantic": vocabulary.semantic}
    return [of[kind](value) for kind, value in strip]


def test_the_strip_stands_for_the_ids_of_the_answer(pipeline: Pipeline, corpus: Corpus) -> None:
    vocabulary = pipeline.backbone.ids.vocabulary
    for source in corpus.rows("test")[:2]:
        reply = pipeline.reply(pipeline.tokenizer.encode(corpus.samples(question_part(source))))
        strip = tokens(reply, vocabulary, pipeline)
        assert strip_ids(strip, pipeline) == reply.ids
    # Every kind of id, whatever the tiny model says.
    text = answer_text(corpus.rows("test")[0])
    words = pipeline.backbone.ids.text.encode(text)
    every = [*words, vocabulary.text_end, vocabulary.audio_start, vocabulary.linguistic(0)]
    every += [vocabulary.linguistic(1023), vocabulary.semantic(0), vocabulary.semantic(4095)]
    every += [vocabulary.audio_end, vocabulary.eot]
    strip = tokens(Reply("", every, None, True), vocabulary, pipeline)
    assert [word for kind, word in strip if kind == "text"] == text.split()
    assert strip[len(words) :] == [
        ["marker", "<text_end>"], ["marker", "<audio_start>"], ["linguistic", 0],
        ["linguistic", 1023], ["semantic", 0], ["semantic", 4095], ["marker", "<audio_end>"],
        ["marker", "<|EOT|>"],
    ]  # fmt: skip
    assert strip_ids(strip, pipeline) == every


def test_a_silent_answer_has_no_file(
    pipeline: Pipeline, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = Waveform(np.full(1920, 0.1, np.float32), 16_000)
    replies = iter([Reply("words", [], None, False), Reply("aloud", [], sound, True)])
    monkeypatch.setattr(pipeline, "reply", lambda codes, **_: next(replies))
    asked = corpus.rows("test")[:2]
    silent, aloud = infer(pipeline, corpus, asked, model="m", out=tmp_path)
    assert (silent["answer"], silent["duration_s"], silent["text"]) == ("", 0.0, "words")
    assert not silent["complete"]
    assert aloud["answer"] == f"audio/{asked[1]['id']}-m.wav" and aloud["duration_s"] == 0.12
    assert {p.name for p in (tmp_path / "audio").iterdir()} == {
        f"{asked[0]['id']}-question.wav", f"{asked[1]['id']}-question.wav",
        f"{asked[1]['id']}-m.wav",
    }  # fmt: skip


def test_seconds_are_the_wall_time_of_hearing_and_answering(
    pipeline: Pipeline, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 12.5])
    steps: list[str] = []

    def tick() -> float:
        steps.append("tick")
        return next(clock)

    sound = Waveform(np.full(1920, 0.1, np.float32), 16_000)
    monkeypatch.setattr(time, "perf_counter", tick)
    monkeypatch.setattr(pipeline, "listen", lambda _: steps.append("listen"))
    monkeypatch.setattr(
        pipeline,
        "reply",
        lambda _, **__: steps.append("reply") or Reply("", [], sound, True),
    )
    (row,) = infer(pipeline, corpus, corpus.rows("test")[:1], model="m", out=tmp_path)
    assert steps == ["tick", "listen", "reply", "tick"]
    assert (row["seconds"], row["duration_s"]) == (2.5, 0.12)


@pytest.mark.parametrize("name", ["../x", "a/b", "a b", "", "a\n", "é"])
def test_a_name_that_is_no_file_name_is_refused_before_anything_is_answered(
    pipeline: Pipeline, corpus: Corpus, tmp_path: Path, name: str
) -> None:
    good, bad = corpus.rows("test")[:2]
    said = rf"^{re.escape(repr(name))} names sound files.*only letters, digits"
    with pytest.raises(UsageError, match=said):
        next(infer(pipeline, corpus, [good, {**bad, "id": name}], model="m", out=tmp_path / "out"))
    with pytest.raises(UsageError, match=said):
        next(infer(pipeline, corpus, [good], model=name, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
