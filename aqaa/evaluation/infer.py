"""Let a model answer a split's spoken questions: one WAV and one row an answer."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aqaa.audio.file import write_audio
from aqaa.data.corpus import Corpus, answer_text, question_part
from aqaa.errors import UsageError
from aqaa.grammar import Mode
from aqaa.pipeline import Pipeline, Reply
from aqaa.signals import QUESTION_RATE_HZ, Turn, Waveform
from aqaa.vocabulary import MARKERS, Vocabulary

# The system turn by which the training tasks ask for an answer in writing or in sound alone.
ASKS: dict[Mode, str] = {"text": "write", "speech": "sound", "both": ""}


def infer(
    pipeline: Pipeline,
    corpus: Corpus,
    rows: list[dict[str, Any]],
    *,
    model: str,
    out: Path,
    mode: Mode = "both",
) -> Iterator[dict[str, Any]]:
    """Answer every row's question from its sound.

    Args:
        pipeline: the model.
        corpus: where the rows' sound lies.
        rows: chat rows of a manifest.
        model: name of the model, written into each answer row.
        out: folder; sounds go to ``out/audio``.
        mode: a written answer, a spoken one, or both; asked for as the tasks of training ask.

    Yields:
        Answer rows; ``answer`` is '' where nothing was said, ``seconds`` the wall time from the
        question's samples to the answer's, ``duration_s`` the length of the answer's sound.

    Raises:
        UsageError: an id or the model's name cannot be part of a file name.
    """
    for name in (model, *(str(row["id"]) for row in rows)):
        _check_name(name)
    (out / "audio").mkdir(parents=True, exist_ok=True)
    for row in rows:
        samples = corpus.samples(question_part(row)).numpy()
        question = Waveform(samples, QUESTION_RATE_HZ)
        begun = time.perf_counter()
        told = [Turn("system", ASKS[mode])] if ASKS[mode] else []
        reply = pipeline.reply(pipeline.listen(question), mode=mode, history=told)
        seconds = time.perf_counter() - begun
        asked, said = f"audio/{row['id']}-question.wav", f"audio/{row['id']}-{model}.wav"
        write_audio(out / asked, samples, QUESTION_RATE_HZ)
        if reply.sound is not None:
            write_audio(out / said, reply.sound.samples, reply.sound.rate_hz)
        yield {
            "id": row["id"],
            "model": model,
            "question": asked,
            "question_text": question_part(row)["text"],
            "expected": answer_text(row),
            "text": reply.text,
            "answer": said if reply.sound is not None else "",
            "complete": reply.complete,
            **{key: row["meta"][key] for key in ("family", "style", "voice", "held_out")},
            "tokens": tokens(reply, pipeline.backbone.ids.vocabulary, pipeline),
            "duration_s": reply.sound.duration_s if reply.sound is not None else 0.0,
            "seconds": round(seconds, 4),
        }


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise UsageError(
            f"{name!r} names sound files and so may hold only letters, digits, '.', '_' and '-'"
        )


def tokens(reply: Reply, vocabulary: Vocabulary, pipeline: Pipeline) -> list[list[Any]]:
    """The answer's stream as (kind, value): words, codes of either book, markers."""
    found: list[list[Any]] = []
    for token in reply.ids:
        kind = vocabulary.token_type(token)
        if token == vocabulary.eot:
            found.append(["marker", "<|EOT|>"])
        elif kind == "marker":
            found.append(["marker", MARKERS[token - vocabulary.marker_start]])
        elif kind == "text":
            found.append(["text", pipeline.backbone.ids.text.decode([token])])
        else:
            found.append([kind, vocabulary.code(token)])
    return found
