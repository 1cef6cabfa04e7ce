"""Answer, judge, sum up: `aqaa evaluate`."""

from pathlib import Path
from typing import Any

from aqaa.data.corpus import Corpus
from aqaa.data.domain import EXTRA_PRONUNCIATIONS
from aqaa.data.manifest import write_manifest
from aqaa.errors import UsageError
from aqaa.evaluation.infer import infer
from aqaa.evaluation.judge import judge
from aqaa.evaluation.measure import control, summarise
from aqaa.evaluation.prosody import Prosody, prosody
from aqaa.evaluation.recognise import Recogniser
from aqaa.evaluation.yardsticks import yardsticks as measure_yardsticks
from aqaa.grammar import Mode
from aqaa.pipeline import Pipeline
from aqaa.progress import track
from aqaa.signals import QUESTION_RATE_HZ
from aqaa.storage import atomic_folder, write_json


def evaluate(
    *,
    corpus: str,
    out: str,
    model: str | None = None,
    organs: dict[str, str] | None = None,
    name: str = "model",
    split: str = "test",
    rows: int = 480,
    shard: str = "0/1",
    yardsticks: bool = False,
    mode: Mode = "both",
) -> Path:
    """Let a model answer spoken questions and a recogniser judge its answers.

    Args:
        corpus: folder of the corpus.
        out: folder of answers.jsonl, the sounds and results.json, written as a whole.
        model: a whole model folder; or
        organs: folders of its ``tokenizer``, ``backbone``, ``flow`` and ``waveform``.
        name: of the model, in the rows.
        split: of the corpus.
        rows: the first so many questions.
        shard: ``k/n`` answers every n-th question from the k-th on.
        yardsticks: also measure what the organs around the backbone allow at best.
        mode: a ``text`` answer, one in ``speech`` alone, or ``both``.
    """
    source = Corpus(corpus)
    pipeline = load_model(model, organs or {})
    part, parts = _shard(shard)
    if rows < 1:
        raise UsageError(f"rows={rows}: at least one question is needed")
    recogniser = Recogniser(source.domain["answers"], EXTRA_PRONUNCIATIONS)
    asked = source.rows(split)[:rows][part::parts]
    with atomic_folder(out) as folder:
        answered = infer(pipeline, source, asked, model=name, out=folder, mode=mode)
        answered = track(answered, f"answers of {name}", len(asked), unit="questions")
        judged = judge(answered, recogniser, folder)
        write_manifest(folder / "answers.jsonl", judged)
        flat, details = summarise(judged, split=split)
        plain = plain_clips(source)
        ratios = control(judged, folder=folder, plain=plain)
        write_json(folder / "results.json", {**flat, "details": details, "control": ratios})
        if yardsticks:
            found: dict[str, Any] = dict(
                measure_yardsticks(source, pipeline.tokenizer, pipeline.vocoder, recogniser)
            )
            found["plain"] = {k: vars(v) for k, v in plain.items()}
            write_json(folder / "yardsticks.json", found)
    return Path(out)


def plain_clips(corpus: Corpus) -> dict[str, Prosody]:
    """Duration and pitch of the original plain clip of every answer that also comes in a style."""
    styled = {row["text"] for row in corpus.answers.values() if row["style"] != "plain"}
    return {
        row["text"]: prosody(corpus.samples(row["audio"]).numpy(), QUESTION_RATE_HZ)
        for row in corpus.answers.values()
        if row["style"] == "plain" and row["text"] in styled
    }


def load_model(model: str | None, organs: dict[str, str]) -> Pipeline:
    """A whole model folder, or four organs."""
    if model is not None:
        return Pipeline.load(model)
    needed = ("tokenizer", "backbone", "flow", "waveform")
    missing = [f"organs.{name}" for name in needed if not organs.get(name)]
    if missing:
        raise UsageError(f"give model=FOLDER, or all four organs; missing: {', '.join(missing)}")
    return Pipeline.from_folders(**{name: organs[name] for name in needed})


def _shard(text: str) -> tuple[int, int]:
    try:
        part, parts = (int(word) for word in text.split("/"))
    except ValueError:
        raise UsageError(f"shard={text} is not of the form k/n") from None
    if not 0 <= part < parts:
        raise UsageError(f"shard={text}: k must lie in 0..n-1")
    return part, parts
