"""The synthetic corpus: spoken questions in many voices, answers in one, manifests beside them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aqaa.data import domain, espeak
from aqaa.data.domain import Question, Style
from aqaa.data.manifest import write_manifest
from aqaa.data.shards import Clip, Utterance, speak
from aqaa.errors import UsageError
from aqaa.progress import Bar
from aqaa.storage import MANIFEST, atomic_folder, read_json, verify_manifest, write_json

SPLITS = ("train", "validation", "test")
FORMAT = 2


def synthesize(
    *,
    out: str | Path,
    questions: int = 12_000,
    validation: int = 240,
    test: int = 480,
    seed: int = 0,
    workers: int = 2,
    families: Sequence[str] | None = None,
) -> Path:
    """Write the corpus folder ``out``; a finished one with the same settings is left alone.

    Args:
        out: the folder: train, validation, test and answers.jsonl, domain.json, audio/.
        questions: spoken questions to train on.
        validation: questions in voices and wordings that choices may be made on.
        test: questions in six more voices, for the figures.
        seed: of the draw; the bytes depend on it and the counts, not on ``workers``.
        workers: synthesis processes at a time.
        families: families of facts (None: all).

    Returns:
        ``out``.
    """
    out = Path(out)
    counts = {"train": questions, "validation": validation, "test": test}
    if min(counts.values()) < 1:
        raise UsageError(f"each split needs at least one question; asked for {counts}")
    settings = _settings(counts, seed, families)
    if _finished(out, settings):
        return out
    asked = {
        split: domain.sample(count=n, split=split, seed=seed, families=families)
        for split, n in counts.items()
    }
    answers = domain.answers(families)
    total = sum(counts.values()) + len(answers)
    with atomic_folder(out) as folder, Bar("synthesize", total, unit="clips") as bar:
        (folder / "audio").mkdir()
        utterances = _utterances(asked, answers)
        clips = speak(utterances, folder=folder, workers=workers, spoken=bar.update)
        _write(folder, asked, answers, clips)
        phones = sorted({p for made in clips.values() for clip in made for p in clip.phones})
        write_json(folder / "domain.json", {**settings, "phones": phones})
    return out


def _settings(counts: dict[str, int], seed: int, families: Sequence[str] | None) -> dict[str, Any]:
    """All that decides the corpus, as stored in domain.json (the phones come with the sound)."""
    facts = domain.facts(families)
    return {
        "format": FORMAT,
        "seed": seed,
        "counts": counts,
        "families": list(dict.fromkeys(fact.family for fact in facts)),
        "answers": list(dict.fromkeys(fact.answer for fact in facts)),
        "words": domain.words(families),
        "questions": [list(fact.wordings) for fact in facts],
        "styles": [style.name for style in domain.STYLES],
        "voices": {split: list(voices) for split, voices in domain.VOICES.items()},
        "speakers": [domain.ANSWER_VOICE],
        "spoken": {
            "synthesiser": espeak.version(),
            "styles": [asdict(style) for style in domain.STYLES],
            "styled_families": list(domain.STYLED_FAMILIES),
            "family_weights": dict(domain.FAMILIES),
            "question_rates_wpm": list(domain.QUESTION_RATES_WPM),
            "question_pitches": list(domain.QUESTION_PITCHES),
        },
    }


def _finished(out: Path, settings: dict[str, Any]) -> bool:
    """Whether ``out`` is this very corpus, undamaged; a folder of anything else is refused."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not all((out / name).is_file() for name in ("domain.json", MANIFEST)):
        raise UsageError(
            f"{out} exists and is no corpus of ours; choose another folder or remove it"
        )
    try:
        verify_manifest(out)
        stored = read_json(out / "domain.json")
    except UsageError:
        return False  # cut or damaged: made again
    if not isinstance(stored, dict):
        return False
    spoken = stored.get("spoken")
    if isinstance(spoken, dict) and not settings["spoken"]["synthesiser"]:
        spoken["synthesiser"] = ""  # a finished corpus is used where none could be made
    return {key: value for key, value in stored.items() if key != "phones"} == settings


def _utterances(
    asked: dict[str, list[Question]], answers: list[tuple[str, Style]]
) -> dict[str, Sequence[Utterance]]:
    spoken: dict[str, Sequence[Utterance]] = {
        split: [Utterance(q.text, q.voice, q.rate_wpm, q.pitch) for q in questions]
        for split, questions in asked.items()
    }
    spoken["answers"] = [
        Utterance(text, domain.ANSWER_VOICE, style.rate_wpm, style.pitch) for text, style in answers
    ]
    return spoken


def _write(
    folder: Path,
    asked: dict[str, list[Question]],
    answers: list[tuple[str, Style]],
    clips: dict[str, list[Clip]],
) -> None:
    """The four manifests."""
    spoken = dict(zip(answers, _answer_rows(answers, clips["answers"]), strict=True))
    write_manifest(folder / "answers.jsonl", spoken.values())
    for split, questions in asked.items():
        rows = (
            _chat_row(f"{split}-{i:05d}", q, clip, spoken[q.fact.answer, q.style])
            for i, (q, clip) in enumerate(zip(questions, clips[split], strict=True))
        )
        write_manifest(folder / f"{split}.jsonl", rows)


def _answer_rows(answers: list[tuple[str, Style]], clips: list[Clip]) -> list[dict[str, Any]]:
    number = {text: i for i, text in enumerate(dict.fromkeys(text for text, _ in answers))}
    return [
        {
            "id": f"answer-{number[text]:03d}-{style.name}",
            "kind": "tts",
            "text": text,
            "audio": clip.part(),
            "speaker": domain.ANSWER_VOICE,
            "style": style.name,
        }
        for (text, style), clip in zip(answers, clips, strict=True)
    ]


def _chat_row(name: str, question: Question, clip: Clip, answer: dict[str, Any]) -> dict[str, Any]:
    heard = {"type": "audio", **clip.part(), "text": question.text}
    place = {key: answer["audio"][key] for key in ("path", "start", "end")}
    reply = [
        {"type": "text", "text": question.fact.answer},
        {"type": "audio", **place, "ref": answer["id"]},
    ]
    return {
        "id": name,
        "kind": "chat",
        "source": "walkthrough",
        "lang": "en",
        "messages": [
            {"role": "user", "content": [heard]},
            {"role": "assistant", "loss": True, "style": question.style.name, "content": reply},
        ],
        "meta": {
            "family": question.fact.family,
            "wording": question.wording,
            "style": question.style.name,
            "voice": question.voice,
            "held_out": question.held_out,
            "answer_id": answer["id"],
        },
    }
