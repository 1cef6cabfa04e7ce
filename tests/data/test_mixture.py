"""Sources of a mixture: how they are declared, which rows they read, what their shares are of."""

from collections import Counter
from typing import Any

import pytest

from aqaa.backbone.loading import Ids
from aqaa.data.corpus import Corpus
from aqaa.data.dialogues import DialogueBatches
from aqaa.data.mixture import Source, read_sources
from aqaa.errors import UsageError
from tests.conftest import Chain


def batches(chain: Chain, tasks: dict[str, Any], **more: Any) -> DialogueBatches:
    folders = {"corpus": str(chain / "corpus"), "tokens": str(chain / "tokens")}
    settings = {"code_noise": 0.0, "validation_rows": 5, "steps": 50, **more}
    made = DialogueBatches(**folders, tasks=tasks, **settings)
    made.bind(Ids.load(chain / "init"))
    return made


def read(made: DialogueBatches, steps: int) -> Counter[str]:
    """Ids of each source in the first steps, from the documents themselves."""
    found = Counter[str]()
    for step in range(steps):
        for row in made.drawn(step):
            for name, place in row:
                found[name] += len(made._document(name, place).ids) - 1
    return found


def test_a_source_is_a_format_or_names_one() -> None:
    chosen = {"share": 2, "format": "aqtaa", "batch": 3, "where": {"lang": "en"}}
    found = read_sources({"asr": {"share": 1}, "chosen": chosen, "tts": {"share": 0}})
    assert found == {
        "asr": Source(1.0, "asr"),
        "chosen": Source(2.0, "aqtaa", 3, {"lang": "en"}),
    }


def test_images_are_refused_above_zero() -> None:
    assert list(read_sources({"asr": {"share": 1}, "image": {"share": 0}})) == ["asr"]
    for tasks in ({"image": {"share": 0.5}}, {"seen": {"format": "image", "share": 0.5}}):
        with pytest.raises(UsageError, match="share=0.5: no image can be trained on yet") as caught:
            read_sources({"asr": {"share": 1}, **tasks})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ({"shar": 1}, "data.tasks.asr has shar: it may have share, batch"),
        ({"batch": 1}, "data.tasks.asr has no share"),
        ({"share": -1}, "must not be negative and not all zero"),
        ({"share": 1, "format": "asd"}, r"unknown tasks \['asd'\]"),
        ({"share": 1, "where": {"lang": []}}, r"data.tasks.asr.where.lang=\[\] takes no row"),
    ],
)
def test_a_source_that_is_none_is_refused(task: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_sources({"tts": {"share": 1}, "asr": task})


SHARES = {"asr": 0.25, "aqtaa": 0.5, "continuation": 0.25}


def shares(made: DialogueBatches, steps: int) -> dict[str, float]:
    ids = read(made, steps)
    return {name: ids[name] / sum(ids.values()) for name in SHARES}


def test_shares_of_ids_are_kept_by_batches_of_one_task(chain: Chain) -> None:
    tasks = {name: {"share": s, "batch": 8 if name == "aqtaa" else 2} for name, s in SHARES.items()}
    by_ids = shares(batches(chain, tasks, share_of="ids"), 1500)
    assert by_ids == pytest.approx(SHARES, abs=0.03)
    by_steps = shares(batches(chain, tasks), 300)
    assert abs(by_steps["aqtaa"] - 0.5) > 0.1  # or the two would be one
    far, near = (batches(chain, tasks, share_of="ids") for _ in range(2))
    assert far.drawn(200) == near.drawn(200)  # beyond the 50 steps that were laid out
    assert far.drawn(3) == batches(chain, tasks, share_of="ids").drawn(3)
    with pytest.raises(UsageError, match="share_of=token is neither steps nor ids"):
        batches(chain, tasks, share_of="token")


def test_shares_of_packed_rows_are_of_ids(chain: Chain) -> None:
    made = batches(chain, {name: {"share": s} for name, s in SHARES.items()}, row_tokens=512)
    assert shares(made, made.packing.rows) == pytest.approx(SHARES, abs=0.02)


@pytest.mark.parametrize("row_tokens", [None, 512])
def test_a_filter_decides_which_rows_a_source_reads(chain: Chain, row_tokens: int | None) -> None:
    where = {"meta.style": ["high", "low"]}
    tasks = {
        "chosen": {"format": "aqtaa", "share": 0.9, "where": where, "batch": 2},
        "replay": {"format": "aqtaa", "share": 0.1, "batch": 2},
    }
    made = batches(chain, tasks, row_tokens=row_tokens)
    rows = Corpus(chain / "corpus").rows("train")
    wanted = {i for i, row in enumerate(rows) if row["meta"]["style"] in ("high", "low")}
    assert 0 < len(wanted) < len(rows)
    seen: dict[str, set[int]] = {"chosen": set(), "replay": set()}
    for step in range(120):
        for name, place in (which for row in made.drawn(step) for which in row):
            seen[name].add(place)
    assert seen["chosen"] == wanted
    assert seen["replay"] - wanted
    assert made.names == ("chosen", "replay")


def test_the_check_keeps_to_the_filter(chain: Chain) -> None:
    where = {"meta.style": ["plain"]}
    made = batches(chain, {"chosen": {"format": "asr", "share": 1, "where": where, "batch": 2}})
    rows = Corpus(chain / "corpus").rows("validation")
    plain = sum(row["meta"]["style"] == "plain" for row in rows)
    assert sum(len(batch.input_ids) for batch in made.validation()) == min(5, plain)


def test_a_filter_that_takes_nothing_is_refused(chain: Chain) -> None:
    tasks = {"asr": {"share": 1, "where": {"meta.style": "sung"}}}
    for more in ({}, {"row_tokens": 512}):
        with pytest.raises(UsageError, match=r"where=\{'meta.style': 'sung'\} takes no row of .*"
                           r"train.jsonl"):  # fmt: skip
            batches(chain, tasks, **more)


@pytest.mark.parametrize("row_tokens", [None, 512])
def test_an_epoch_is_as_many_as_there_are_rows(chain: Chain, row_tokens: int | None) -> None:
    tasks = {"aqtaa": {"share": 0.8, "batch": 2}, "asr": {"share": 0.2, "batch": 3}}
    made = batches(chain, tasks, row_tokens=row_tokens)
    rows = len(Corpus(chain / "corpus").rows("train"))
    for name in tasks:
        # Over many epochs, as a few dozen draws, or rows, may have more of one by chance.
        steps = round(60 * made.epoch_batches(name))
        drawn = sum(n == name for step in range(steps) for row in made.drawn(step) for n, _ in row)
        assert drawn / 60 == pytest.approx(rows, rel=0.05)
    assert made.epoch_batches() == max(map(made.epoch_batches, tasks))
    with pytest.raises(UsageError, match="epochs.of=tts is no source: there are aqtaa, asr"):
        made.epoch_batches("tts")


def test_a_chosen_document_that_fits_no_row_is_named_by_its_own_row(chain: Chain) -> None:
    rows = Corpus(chain / "corpus").rows("train")
    last = rows[-1]["id"]  # where all rows are counted, its place is another's
    tasks = {"aqtaa": {"share": 1, "where": {"id": [last]}}}
    with pytest.raises(UsageError, match=f"the longest is row {last} as aqtaa"):
        batches(chain, tasks, row_tokens=16)
