"""The corpus folder: what is in it, that it is the same each time, that it is whole or absent."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("espeakng_loader")

from aqaa.data import domain, espeak
from aqaa.data import synthesize as module
from aqaa.data.manifest import clip, read_manifest
from aqaa.data.synthesize import SPLITS, synthesize
from aqaa.data.validate import validate
from aqaa.errors import UsageError
from aqaa.signals import GROUP_SAMPLES
from aqaa.storage import read_json, tree_hash, verify_manifest

SMALL = {"questions": 6, "validation": 2, "test": 2, "families": ("snd",)}


def rows_of(corpus: Path) -> dict[str, list[dict]]:
    return {split: read_manifest(corpus / f"{split}.jsonl") for split in SPLITS}


def test_counts(corpus: Path) -> None:
    assert {split: len(rows) for split, rows in rows_of(corpus).items()} == {
        "train": 60, "validation": 12, "test": 16,
    }  # fmt: skip
    assert len(read_manifest(corpus / "answers.jsonl")) == len(domain.answers())
    assert sorted(p.name for p in corpus.iterdir()) == [
        "MANIFEST.sha256", "answers.jsonl", "audio", "domain.json", "test.jsonl", "train.jsonl",
        "validation.jsonl",
    ]  # fmt: skip


def test_a_row_says_what_was_asked_and_where_the_answer_lies(corpus: Path) -> None:
    answers = {row["id"]: row for row in read_manifest(corpus / "answers.jsonl")}
    for split, rows in rows_of(corpus).items():
        for row in rows:
            user, assistant = row["messages"]
            text, audio = assistant["content"]
            answer = answers[audio["ref"]]
            assert row["meta"]["answer_id"] == audio["ref"]
            assert {key: answer["audio"][key] for key in ("path", "start", "end")} == {
                key: audio[key] for key in ("path", "start", "end")
            }
            assert answer["text"] == text["text"]
            assert answer["style"] == assistant["style"] == row["meta"]["style"]
            assert row["meta"]["voice"] in domain.VOICES[split]
            assert user["role"] == "user" and assistant["loss"] is True


def test_questions_are_those_of_the_draw_in_its_order(corpus: Path) -> None:
    for split, rows in rows_of(corpus).items():
        drawn = domain.sample(count=len(rows), split=split, seed=3)
        assert [r["messages"][0]["content"][0]["text"] for r in rows] == [q.text for q in drawn]
        assert [r["meta"]["held_out"] for r in rows] == [q.held_out for q in drawn]
        assert [r["meta"]["voice"] for r in rows] == [q.voice for q in drawn]


def test_held_out_texts_are_not_trained_on(corpus: Path) -> None:
    rows = rows_of(corpus)
    assert not any(row["meta"]["held_out"] for row in rows["train"])
    assert any(row["meta"]["held_out"] for row in rows["test"] + rows["validation"])


def test_clips_are_whole_groups_and_sound(corpus: Path) -> None:
    parts = [row["audio"] for row in read_manifest(corpus / "answers.jsonl")]
    parts += [r["messages"][0]["content"][0] for rows in rows_of(corpus).values() for r in rows]
    for part in parts:
        assert round(part["start"] * 16_000, 6) % GROUP_SAMPLES == 0
        samples = clip(part, corpus).samples
        assert len(samples) % GROUP_SAMPLES == 0
        assert 0.49 < abs(samples).max() < 0.51
        assert part["phones"]


def test_domain_lists_what_training_needs(corpus: Path) -> None:
    stored = read_json(corpus / "domain.json")
    assert stored["seed"] == 3
    assert stored["answers"] == list(dict.fromkeys(f.answer for f in domain.facts()))
    assert stored["words"] == domain.words()
    phones = {p for rows in rows_of(corpus).values() for r in rows
              for p in r["messages"][0]["content"][0]["phones"]}  # fmt: skip
    phones |= {p for row in read_manifest(corpus / "answers.jsonl") for p in row["audio"]["phones"]}
    assert stored["phones"] == sorted(phones)
    assert 35 < len(phones) < 70


def test_the_corpus_passes_its_own_validation(corpus: Path) -> None:
    for name in (*SPLITS, "answers"):
        assert validate(manifest=corpus / f"{name}.jsonl", deep=True) == []
    verify_manifest(corpus)


def test_one_worker_and_two_make_the_same_bytes(tmp_path: Path) -> None:
    one = synthesize(out=tmp_path / "1", workers=1, **SMALL)
    two = synthesize(out=tmp_path / "2", workers=2, **SMALL)
    assert tree_hash(one) == tree_hash(two) != ""
    other = synthesize(out=tmp_path / "3", workers=2, **{**SMALL, "seed": 1})
    assert tree_hash(other) != tree_hash(one)


def test_a_finished_corpus_is_left_alone(tmp_path: Path, monkeypatch) -> None:
    out = synthesize(out=tmp_path / "c", **SMALL)
    monkeypatch.setattr(module, "speak", lambda *a, **k: pytest.fail("made again"))
    stamp = (out / "audio/train_000.wav").stat().st_mtime_ns
    assert synthesize(out=out, workers=1, **SMALL) == out
    assert (out / "audio/train_000.wav").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("damage", ["cut", "lost", "other settings"])
def test_a_damaged_or_other_corpus_is_made_again(tmp_path: Path, damage: str) -> None:
    out = synthesize(out=tmp_path / "c", **SMALL)
    whole = tree_hash(out)
    if damage == "cut":
        wav = out / "audio/train_000.wav"
        wav.write_bytes(wav.read_bytes()[:1000])
    elif damage == "lost":
        (out / "test.jsonl").unlink()
    else:
        synthesize(out=out, **{**SMALL, "questions": 7})
        assert tree_hash(out) != whole
    synthesize(out=out, **SMALL)
    assert verify_manifest(out) == whole


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STYLES", (domain.PLAIN, *(replace(s, pitch=50) for s in domain.STYLES[1:]))),
        ("STYLES", (domain.PLAIN, *(replace(s, words="so") for s in domain.STYLES[1:]))),
        ("QUESTION_RATES_WPM", (135, 211)),
        ("QUESTION_PITCHES", (15, 86)),
        ("FAMILIES", {**domain.FAMILIES, "col": 9.0}),
        ("STYLED_FAMILIES", ("snd",)),
        ("version", lambda: "0.1"),
    ],
)
def test_whatever_decides_the_corpus_is_in_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    class Again(Exception):
        pass

    def speak(*_: object, **__: object) -> None:
        raise Again

    out = synthesize(out=tmp_path / "c", **SMALL)
    monkeypatch.setattr(espeak if name == "version" else domain, name, value)
    monkeypatch.setattr(module, "speak", speak)
    with pytest.raises(Again):
        synthesize(out=out, **SMALL)


def test_a_finished_corpus_needs_no_synthesiser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = synthesize(out=tmp_path / "c", **SMALL)
    assert read_json(out / "domain.json")["spoken"]["synthesiser"] == espeak.version() != ""
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    assert espeak.version() == ""
    assert synthesize(out=out, **SMALL) == out


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is no corpus of ours"):
        synthesize(out=tmp_path, **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_cut_run_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthesize(out=tmp_path / "c", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"questions": 0}, "at least one question"), ({"families": ["xyz"]}, "families .* not known")],
)
def test_unusable_settings(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        synthesize(out=tmp_path / "c", **{**SMALL, **settings})
    assert list(tmp_path.iterdir()) == []
