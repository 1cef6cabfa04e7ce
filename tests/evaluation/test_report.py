import base64
import io
import re
import wave
from html.parser import HTMLParser

import pytest

from aqaa.evaluation.measure import figure
from aqaa.evaluation.report import MAX_BYTES, write_report
from aqaa.evaluation.report_cards import choose
from aqaa.evaluation.report_figures import curves, perplexity, read_metrics, thin
from aqaa.evaluation.report_lineage import ancestry, duration, lineage, size
from aqaa.evaluation.report_page import parts

VOID = {"meta", "img", "br", "input", "hr", "link", "source"}


class Page(HTMLParser):
    """Counts tags, keeps addresses and text, and fails on a tag closed out of turn."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.addresses, self.ids, self.words = [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if self.open[-1:] not in (["style"],):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def page(run):
    html = write_report(**vars(run)).read_text(encoding="utf-8")
    return html, Page(html)


def test_one_whole_file_that_asks_no_other_host(run, page):
    html, parsed = page
    assert [p.name for p in run.folder.glob("*.html")] == ["report.html"]
    assert parsed.addresses
    assert all(re.match(r"#|data:(image/png|audio/wav);base64,", a) for a in parsed.addresses)
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {a[1:] for a in parsed.addresses if a.startswith("#")} <= set(parsed.ids)


def test_every_promised_item_is_there(run, page):
    html, parsed = page
    cards = 20
    assert parsed.tags.count("article") == cards
    assert parsed.tags.count("audio") == parsed.tags.count("img") == 2 * (cards + 1)
    assert html.count('class="strip"') == cards
    for word in ("expected", "wrote", "heard"):
        assert parsed.words.count(word) == cards
    for stage in run.runs:
        assert f"<h3>{stage.replace('_', ' ')}</h3>" in html
    assert html.count("<figcaption><b>loss</b>") == len(run.runs)
    assert "codes used · perplexity" in parsed.text
    for said in ("95 % interval", "floor 85.0 %", "× 1.50", "duration ≥ 1.25", "2.13.0+cpu"):
        assert said in parsed.text
    for part in ("merged", "SFT 1", "SFT 2", "DPO"):
        assert part in parsed.text


def models(wins, losses, n=400):
    """The models of a made-up merge and one part, as HTML and as text."""
    both = (n - wins - losses) // 2
    details = {
        "answers_correct": figure(471, 480, "test"),
        "sft_2.answers_correct": figure(both + losses, n, "test"),
        "merge.answers_correct.beside.sft_2": figure(both + wins, n, "test"),
        "sft_2.answers_correct.beside.merge": figure(both + losses, n, "test"),
        "merge.answers_correct.over.sft_2": figure(wins, n, "test"),
        "sft_2.answers_correct.over.merge": figure(losses, n, "test"),
    }
    html = parts({"details": details}, "merge")
    return html, Page(html).text


def test_a_merge_below_a_part_on_the_same_questions_is_marked_as_hurt():
    html, text = models(7, 27)
    said = "7 only merged got right, 27 only SFT 2 (sign test, p < 0.001): merged is hurt."
    assert f"merged and SFT 2, the same 400 questions: {said}" in text
    assert html.count('class="hurt"') == 1 and "merged hurt n = 480" in text
    assert "SFT 2 n = 400 52.5 %" in text and "merged 47.5 %" in text


@pytest.mark.parametrize(
    ("wins", "losses", "said"),
    [
        (3, 9, "(sign test, p = 0.15): merged is hurt, which may be chance."),
        (9, 3, "(sign test, p = 0.15): merged is ahead, which may be chance."),
        (19, 7, "(sign test, p = 0.029): merged is ahead."),
        (4, 4, "(sign test, p = 1): neither is ahead."),
    ],
)
def test_the_verdict_follows_the_paired_counts(wins, losses, said):
    html, text = models(wins, losses)
    assert said in text
    # 471 of 480 beside 200 of 400 says nothing: they are other questions.
    assert ('class="hurt"' in html) == (losses > wins)


def test_the_page_says_how_long_answers_took_and_last_and_what_is_unseen(run, page):
    text = page[1].text
    assert "An answer took 0.31 s to make and lasts 1.40 s on average." in text
    assert "made in 0.30 s" in text
    assert "another variant of the same speech synthesiser" in text
    assert "some are close to a voice of training; none of it is human speech" in text
    for row in run.answers:
        del row["seconds"], row["duration_s"]
    text = Page(write_report(**vars(run)).read_text(encoding="utf-8")).text
    assert "An answer" not in text and "made in" not in text


def test_a_missed_floor_is_said(run):
    run.results["details"]["text_correct"]["value"] = 0.5
    assert "floor 94.0 % ✗ missed" in Page(write_report(**vars(run)).read_text("utf-8")).text


def test_the_sound_inside_is_the_sound_on_disk(run, page):
    first = next(a for a in page[1].addresses if a.startswith("data:audio"))
    with wave.open(io.BytesIO(base64.b64decode(first.split(",")[1]))) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (16_000, 1, 2)
        assert sound.getnframes() == 25_600


def test_text_is_shown_and_never_run(run):
    evil = '<script>alert("x")</script>'
    for row in run.answers:
        row |= {"question_text": evil, "text": evil, "heard": evil, "family": evil, "voice": evil}
        row["tokens"] = [["text", evil], ["marker", "<audio_start>"], ["linguistic", 3]]
    run.results["seed"] = evil
    html = write_report(**vars(run)).read_text(encoding="utf-8")
    parsed = Page(html)
    assert "script" not in parsed.tags and evil in parsed.words


def test_a_dollar_in_the_text_stays_one(run):
    for row in run.answers:
        row["expected"] = "it costs $lead"
    assert "it costs $lead" in write_report(**vars(run)).read_text(encoding="utf-8")


def test_the_file_stays_small_enough_whatever_is_asked(run, monkeypatch):
    monkeypatch.setattr("aqaa.evaluation.report.MAX_BYTES", 700_000)
    path = write_report(**vars(run))
    text = Page(path.read_text(encoding="utf-8")).text
    assert path.stat().st_size < 701_000 < MAX_BYTES
    shown = int(re.search(r"(\d+) of 20 held-out questions", text)[1])
    assert 0 < shown < 20


def test_missing_pieces_are_said_to_be_missing(tmp_path):
    path = write_report(folder=tmp_path, results={}, answers=[], runs={}, extra={})
    text = Page(path.read_text(encoding="utf-8")).text
    for said in (
        "not measured", "No model was judged", "Voice control was not measured",
        "No stage was trained", "No code was counted", "No stage is on record",
        "There is no answer to show", "not kept",
    ):  # fmt: skip
        assert said in text


def test_unjudged_soundless_rows_and_empty_runs_are_shown_as_such(run, tmp_path):
    for row in run.answers:
        row |= {"heard": None, "answer": "", "tokens": []}
    (tmp_path / "empty").mkdir()
    run.runs, run.results = {"sft_1": tmp_path / "empty", "dpo": tmp_path / "gone"}, {}
    text = Page(write_report(**vars(run)).read_text(encoding="utf-8")).text
    assert text.count("This run left no metrics") == 2
    for said in ("not judged", "no sound was made", "No token was kept"):
        assert said in text


def test_mistakes_come_first_and_leave_room_for_every_family():
    def row(place, right):
        heard = "a" if right else "b"
        family, style = f"f{place % 5}", "plain slow".split()[place % 2]
        return {"id": place, "family": family, "style": style, "expected": "a", "heard": heard}

    rows = [row(i, right=i >= 40) for i in range(100)]
    picked = choose(rows, 20)
    assert [r["heard"] for r in picked] == ["b"] * 10 + ["a"] * 10
    assert len({r["family"] for r in picked[:5]}) == len({r["family"] for r in picked[10:15]}) == 5
    assert len(choose(rows[:40], 20)) == len(choose(rows[40:], 20)) == 20
    assert len({r["id"] for r in choose(rows, 200)}) == 100


def test_metrics_are_read_into_panels_of_both_splits(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(
        "epoch,step,train/loss,val_loss,loss_text,lr-AdamW\n"
        "0,0,4.0,,,0.1\n0,10,2.0,,nan,0.1\n0,10,,3.0,7,\n0,20,1.0,,,words\n"
    )
    panels = read_metrics(path)
    assert list(panels) == ["loss", "loss_text", "lr-AdamW"]
    assert panels["loss"] == {"train": [(0, 4), (10, 2), (20, 1)], "held out": [(10, 3)]}
    assert panels["loss_text"] == {"train": [(10, 7)]}
    assert curves(path).count("<svg") == 3


@pytest.mark.parametrize("cells", ["0", "0\n0", "-1\n-1", "1e-9\n5", "5\n1e9", "1e300\n1"])
def test_any_range_can_be_drawn(tmp_path, cells):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n" + "\n".join(f"{i},{c}" for i, c in enumerate(cells.split())))
    drawn = curves(path)
    assert "<svg" in drawn and "nan" not in drawn and "inf" not in drawn


def test_thinning_keeps_the_shape_and_the_end():
    points = [(float(i), float(i)) for i in range(10_001)]
    kept = thin(points)
    assert len(kept) <= 162 and kept[-1] == points[-1]
    assert all(x == pytest.approx(y) for x, y in kept)
    assert thin(points[:5]) == points[:5]


def test_perplexity_counts_the_codes_used_alike():
    assert perplexity([5] * 64 + [0] * 100) == pytest.approx(64)
    assert perplexity([0, 9, 0]) == pytest.approx(1)
    assert perplexity([]) == 0


def stage(name, *parents, run=""):
    return {"stage": name, "run": run or f"runs/{name}", "parents": list(parents)}


def test_ancestry_follows_names_and_folders_and_leaves_out_grandparents():
    stages = [
        stage("tokenizer_linguistic"),
        stage("pretrain", "runs/tokenizer_linguistic"),
        stage("sft_1", "/somewhere/pretrain/", "tokenizer_linguistic", "unknown"),
        stage("merge", "sft_1", "pretrain"),
    ]
    assert ancestry(stages) == {
        "tokenizer_linguistic": [],
        "pretrain": ["tokenizer_linguistic"],
        "sft_1": ["pretrain"],
        "merge": ["sft_1"],
    }


def test_the_lineage_is_drawn_with_an_edge_for_each_parent_even_on_a_cycle():
    stages = [stage("a"), stage("b", "a"), stage("c", "a"), stage("d", "b", "c")]
    assert lineage(stages).count('class="edge"') == 4
    assert "d from b and c" in lineage(stages)
    assert lineage([stage("a", "b"), stage("b", "a")]).count("<rect") == 2


def test_durations_and_sizes_read_well():
    assert [duration(s) for s in (None, 0.62, 48, 250, 11_100)] == [
        "–", "0.6 s", "48 s", "4 min 10 s", "3 h 5 min",
    ]  # fmt: skip
    assert [size(n) for n in (None, 0, 1_380_000, 950, 1.3e11)] == [
        "–", "–", "1.38 M", "0.95 k", "130 B",
    ]  # fmt: skip
