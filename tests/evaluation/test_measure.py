import sys

import pytest

from aqaa.audio.file import write_audio
from aqaa.evaluation.measure import (
    CONTROL_FLOORS,
    control,
    figure,
    pairs,
    sign_test,
    split_label,
    summarise,
    wilson,
)
from aqaa.evaluation.prosody import Prosody


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [  # Newcombe (1998), method 3, and the textbook case of ten
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_against_published_values(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_what_is_no_share(k, n):
    with pytest.raises(ValueError, match=f"{k} successes in {n}"):
        wilson(k, n)


def test_a_figure_of_nothing_is_none_with_a_reason():
    assert figure(3, 4, "test")["value"] == 0.75
    nothing = figure(0, 0, "test")
    assert nothing["value"] is None and nothing["ci95"] is None and nothing["reason"]


def row(
    expected, text, heard, *, model="merge", held_out=False, family="days", style="plain", id=""
):
    return {
        "id": id, "model": model, "expected": expected, "text": text, "heard": heard,
        "held_out": held_out, "family": family, "style": style, "answer": "",
    }  # fmt: skip


ROWS = [
    row("a", "a", "a", id="1"),
    row("a", "a", "b", held_out=True, id="2"),  # written right, spoken wrong
    row("a", "b", "a", family="colours", id="3"),  # written wrong, spoken right
    row("a", "b", "b", family="colours", held_out=True, id="4"),  # wrong, but of one mind
    row("a", "", "", style="slow", id="5"),  # said nothing: agrees with nothing
    row("a", "a", "a", model="dpo", held_out=True, id="2"),
]


def test_summary_of_handmade_rows():
    flat, details = summarise(ROWS)
    assert flat == {
        "answers_correct": 2 / 5, "text_correct": 2 / 5, "text_audio_agreement": 2 / 5,
    }  # fmt: skip
    values = {key: (found["value"], found["n"]) for key, found in details.items()}
    assert values["answers_correct"] == (2 / 5, 5)
    assert values["answers_correct.held_out"] == (0.0, 2)
    assert values["answers_correct.trained"] == (2 / 3, 3)
    assert values["text_correct.family.colours"] == (0.0, 2)
    assert values["answers_correct.family.colours"] == (1 / 2, 2)
    assert values["answers_correct.style.slow"] == (0.0, 1)
    assert values["dpo.answers_correct"] == (1.0, 1)
    assert values["dpo.answers_correct.trained"] == (None, 0)
    assert "held-out" in details["answers_correct.held_out"]["split"]


def test_models_compare_on_exactly_the_questions_both_answered():
    rows = [row("a", "a", heard, id=str(i)) for i, heard in enumerate("aabbaa")]
    # Asked in another order, one question of its own; it fails 1, and gets 2 and 3 right.
    theirs = {"3": "a", "2": "a", "1": "b", "0": "a", "9": "b"}
    rows += [row("a", "a", heard, id=i, model="sft_2") for i, heard in theirs.items()]
    _, details = summarise(rows)
    found = {k: (f["value"], f["n"]) for k, f in details.items()}
    assert found["answers_correct"] == (4 / 6, 6)
    assert found["sft_2.answers_correct"] == (3 / 5, 5)
    assert found["merge.answers_correct.beside.sft_2"] == (2 / 4, 4)
    assert found["sft_2.answers_correct.beside.merge"] == (3 / 4, 4)
    assert found["merge.answers_correct.over.sft_2"] == (1 / 4, 4)
    assert found["sft_2.answers_correct.over.merge"] == (2 / 4, 4)
    assert found["sft_2.text_correct.over.merge"] == (0.0, 4)
    said = details["merge.answers_correct.beside.sft_2"]["split"]
    assert said == "test, unseen voices, questions that sft_2 answered too"


def test_no_shared_or_unjudged_questions_make_no_comparison():
    rows = [row("a", "a", "a", id="1"), row("a", "a", "a", id="2", model="dpo")]
    _, details = summarise(rows)
    assert details["dpo.answers_correct.over.merge"]["reason"] == "no rows to measure"
    rows = [row("a", "a", heard, id="1", model=m) for m, heard in (("merge", "a"), ("dpo", None))]
    _, details = summarise(rows)
    for one, other in (("merge", "dpo"), ("dpo", "merge")):
        assert details[f"{one}.answers_correct.over.{other}"]["value"] is None
        assert details[f"{one}.text_correct.over.{other}"]["value"] == 0.0


def test_pairs_are_those_of_the_models_there_are():
    assert pairs(["merge", "sft_1", "dpo"]) == [
        ("dpo", "sft_1"), ("merge", "sft_1"), ("merge", "dpo"),
    ]  # fmt: skip
    assert pairs(["model"]) == []


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (8, 1, 20 / 512), (1, 8, 20 / 512), (0, 400, 0.0)],
)
def test_sign_test_against_counting_by_hand(wins, losses, p):
    assert sign_test(wins, losses) == pytest.approx(p, abs=1e-12)


def test_figures_say_which_split_and_whose_voices():
    assert split_label("train") == "train, training voices"
    _, details = summarise(ROWS, split="validation")
    assert all(f["split"].startswith("validation, unseen voices") for f in details.values())


def test_the_first_model_leads_where_nothing_was_merged():
    flat, details = summarise([r for r in ROWS if r["model"] == "dpo"])
    assert flat["answers_correct"] == 1.0 and "dpo.answers_correct" not in details


def test_unjudged_rows_give_none_and_never_zero():
    rows = [{key: value for key, value in r.items() if key != "heard"} for r in ROWS]
    flat, details = summarise(rows)
    assert flat["answers_correct"] is None and flat["text_audio_agreement"] is None
    assert flat["text_correct"] == 2 / 5
    assert details["answers_correct"]["reason"] == "5 of 5 answers were not judged"


def test_no_rows_at_all():
    flat, details = summarise([])
    assert set(flat.values()) == {None}
    assert all(found["reason"] for found in details.values())


# ---- voice control


@pytest.fixture
def spoken(tmp_path, tones):
    """Writes a tone as one row's answer."""

    def write(style, duration_s, f0_hz, **changes):
        name = f"{len(list(tmp_path.iterdir()))}.wav"
        write_audio(tmp_path / name, tones(duration_s, f0_hz, 0.1), 16_000)
        return {**row("a", "a", "a", style=style), "answer": name, **changes}

    return write


def test_control_on_tones_of_known_length_and_pitch(tmp_path, spoken):
    pytest.importorskip("parselmouth")
    rows = [
        spoken("plain", 0.9, 110),
        spoken("plain", 1.1, 130),
        spoken("slow", 1.5, 120),
        spoken("slow", 1.3, 120),
        spoken("quick", 0.7, 120),
        spoken("high", 1.0, 180),
        spoken("low", 1.0, 84),
        spoken("slow", 9.0, 300, text="wrong"),
        spoken("slow", 9.0, 300, model="dpo"),
    ]
    found = control(rows, folder=tmp_path)
    expected = {"slow": (1.4, 1.0), "quick": (0.7, 1.0), "high": (1.0, 1.5), "low": (1.0, 0.7)}
    for style, ratios in expected.items():
        measured = (found[style]["duration_ratio"], found[style]["f0_ratio"])
        assert measured == pytest.approx(ratios, abs=0.02)
    assert [found[style]["n"] for style in found] == [2, 1, 1, 1]
    assert all(floor.met(found[s][floor.figure]) for s, floor in CONTROL_FLOORS.items())


def test_a_style_that_changes_nothing_misses_every_floor(tmp_path, spoken):
    pytest.importorskip("parselmouth")
    found = control([spoken(s, 1.0, 120) for s in ("plain", *CONTROL_FLOORS)], folder=tmp_path)
    assert not any(floor.met(found[s][floor.figure]) for s, floor in CONTROL_FLOORS.items())


def test_the_original_clip_stands_in_for_a_text_never_said_plainly(tmp_path, spoken):
    pytest.importorskip("parselmouth")
    rows = [spoken("slow", 1.5, 120)]
    assert control(rows, folder=tmp_path)["slow"]["n"] == 0
    found = control(rows, folder=tmp_path, plain={"a": Prosody(1.0, 100.0)})["slow"]
    assert found["duration_ratio"] == pytest.approx(1.5, abs=0.02)
    assert found["f0_ratio"] == pytest.approx(1.2, abs=0.02)


def test_nothing_to_compare_is_none_with_a_reason(tmp_path):
    for found in control(ROWS, folder=tmp_path).values():
        assert found["duration_ratio"] is None and found["f0_ratio"] is None
        assert found["n"] == 0 and found["reason"]


def test_without_praat_the_duration_is_still_measured(tmp_path, spoken, monkeypatch):
    monkeypatch.setitem(sys.modules, "parselmouth", None)
    rows = [spoken("plain", 1.0, 120), spoken("slow", 1.5, 120)]
    found = control(rows, folder=tmp_path)["slow"]
    assert found["duration_ratio"] == pytest.approx(1.5, abs=0.02)
    assert found["f0_ratio"] is None and "praat-parselmouth" in found["reason"]
