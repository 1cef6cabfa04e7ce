"""The closed world: its facts, what is held out, who speaks, how it is drawn."""

from collections import Counter

import pytest

from aqaa.data import domain
from aqaa.data.domain import EXTRA_PRONUNCIATIONS, FAMILIES, PLAIN, STYLED_FAMILIES, STYLES, VOICES
from aqaa.errors import UsageError

COUNTS = {
    "col": 12, "opp": 24, "day": 14, "snd": 6, "col1": 12, "cap": 16, "add": 25, "sub": 15,
    "long": 12,
}  # fmt: skip


def test_every_family_is_complete_and_numbered() -> None:
    assert Counter(fact.family for fact in domain.facts()) == COUNTS
    assert set(COUNTS) == set(FAMILIES)
    for family, count in COUNTS.items():
        assert [fact.index for fact in domain.facts([family])] == list(range(count))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("what color is grass", "grass is green"),
        ("do you know the color of flamingo", "flamingo is pink"),
        ("give me the opposite of small", "the opposite is big"),
        ("what day comes after sunday", "it is monday"),
        ("which day is before monday", "it is sunday"),
        ("tell me what the owl says", "the owl says hoot"),
        ("which city is the capital of norway", "the capital of norway is oslo"),
        ("how much is four plus five", "that is nine"),
        ("what is five minus five", "that is zero"),
        ("explain how bread is made", "bread is made from flour and water and then baked in a hot"
         " oven"),
    ],
)  # fmt: skip
def test_facts(question: str, answer: str) -> None:
    asked = [fact for fact in domain.facts() if question in fact.wordings]
    assert [fact.answer for fact in asked] == [answer]


def test_no_question_has_two_answers() -> None:
    wordings = [wording for fact in domain.facts() for wording in fact.wordings]
    assert len(wordings) == len(set(wordings))
    assert {len(fact.wordings) for fact in domain.facts()} == {2, 4}


def test_sums_are_right() -> None:
    value = {word: i for i, word in enumerate(domain.NUMBERS)}
    for fact in domain.facts(["add", "sub"]):
        a, sign, b = fact.wordings[0].split()[-3:]
        expected = value[a] + value[b] if sign == "plus" else value[a] - value[b]
        assert value[fact.answer.split()[-1]] == expected
        assert 1 <= value[a] <= 5 and 1 <= value[b] <= 5 and expected >= 0


def test_long_answers_run_over_one_block_of_text_and_differ() -> None:
    answers = [fact.answer.split() for fact in domain.facts(["long"])]
    assert all(11 <= len(answer) <= 16 for answer in answers)
    for i, one in enumerate(answers):
        for other in answers[:i]:
            shared = len(set(one) & set(other)) / min(len(set(one)), len(set(other)))
            assert shared < 0.6, (one, other)
    others = [fact.answer for fact in domain.facts() if fact.family != "long"]
    assert max(len(answer.split()) for answer in others) < 10


def test_the_recogniser_knows_every_answer_word() -> None:
    pocketsphinx = pytest.importorskip("pocketsphinx")
    dictionary = f"{pocketsphinx.get_model_path()}/en-us/cmudict-en-us.dict"
    with open(dictionary, encoding="utf-8") as lines:
        known = {line.split()[0] for line in lines} | set(EXTRA_PRONUNCIATIONS)
    assert {word for fact in domain.facts() for word in fact.answer.split()} <= known


def test_each_fact_with_four_wordings_loses_one_and_each_wording_is_lost_by_some() -> None:
    lost = Counter()
    for fact in domain.facts():
        held = [w for w in range(len(fact.wordings)) if fact.held_out(w)]
        assert len(held) == (1 if len(fact.wordings) == 4 else 0)
        lost.update(held)
    assert set(lost) == {0, 1, 2, 3}
    assert domain.facts(["col"])[0].held_out(3) and domain.facts(["col"])[2].held_out(1)


def test_splits_share_no_voice() -> None:
    train, validation, test = (set(VOICES[s]) for s in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (78, 6, 6)
    assert not train & validation and not train & test and not validation & test
    assert all(len(voices) == len(set(voices)) for voices in VOICES.values())


def test_training_never_uses_a_held_out_wording_and_the_rest_do() -> None:
    share = {
        split: sum(q.held_out for q in domain.sample(count=4000, split=split, seed=0)) / 4000
        for split in VOICES
    }
    assert share["train"] == 0.0
    # a quarter of the questions of families with four wordings (17 of 21 by weight)
    assert share["validation"] == pytest.approx(0.25 * 17 / 21, abs=0.03)
    assert share["test"] == pytest.approx(0.25 * 17 / 21, abs=0.03)


def test_the_texts_of_training_and_of_held_out_questions_are_disjoint() -> None:
    train = {q.text for q in domain.sample(count=8000, split="train", seed=0)}
    unseen = {q.text for q in domain.sample(count=4000, split="test", seed=0) if q.held_out}
    assert unseen and not train & unseen


def test_styles_are_asked_for_in_half_of_the_styled_families_only() -> None:
    drawn = domain.sample(count=6000, split="train", seed=1)
    styled = [q for q in drawn if q.fact.family in STYLED_FAMILIES]
    assert all(q.style is PLAIN for q in drawn if q.fact.family not in STYLED_FAMILIES)
    assert sum(q.style is not PLAIN for q in styled) / len(styled) == pytest.approx(0.5, abs=0.04)
    assert {q.style for q in styled} == set(STYLES)
    assert all(q.text.endswith(q.style.words) for q in drawn)


def test_families_are_drawn_by_weight_and_every_voice_speaks() -> None:
    drawn = domain.sample(count=6000, split="train", seed=2)
    counts = Counter(q.fact.family for q in drawn)
    for family, weight in FAMILIES.items():
        expected = weight / sum(FAMILIES.values())
        assert counts[family] / 6000 == pytest.approx(expected, abs=0.025)
    assert {q.voice for q in drawn} == set(VOICES["train"])
    assert {q.rate_wpm for q in drawn} == set(range(135, 211))
    assert {q.pitch for q in drawn} == set(range(15, 86))


def test_the_draw_depends_on_seed_and_split_alone() -> None:
    draw = domain.sample(count=50, split="train", seed=5)
    assert draw == domain.sample(count=50, split="train", seed=5)
    assert draw[:20] == domain.sample(count=20, split="train", seed=5)
    assert draw != domain.sample(count=50, split="train", seed=6)
    assert [q.fact for q in draw] != [q.fact for q in domain.sample(count=50, split="test", seed=5)]


def test_families_can_be_chosen() -> None:
    drawn = domain.sample(count=40, split="train", seed=0, families=("snd", "sub"))
    assert {q.fact.family for q in drawn} == {"snd", "sub"}
    assert "rainbow" not in domain.words(["snd"]) and "woof" in domain.words(["snd"])
    with pytest.raises(UsageError, match=r"families \['colour'\] are not known; choose from col"):
        domain.facts(["colour"])
    with pytest.raises(UsageError, match="choose from"):
        domain.facts([])


def test_answers_are_listed_once_for_each_style() -> None:
    listed = domain.answers()
    assert len(listed) == len(set(listed))
    styled = {text for text, style in listed if style is not PLAIN}
    assert styled == {f.answer for f in domain.facts() if f.family in STYLED_FAMILIES}
    assert len(listed) == len({f.answer for f in domain.facts()}) + 4 * len(styled)


def test_words_cover_all_that_is_said_and_written() -> None:
    words = set(domain.words())
    for question in domain.sample(count=500, split="test", seed=0):
        assert set(f"{question.text} {question.fact.answer}".split()) <= words
    assert domain.words() == sorted(words)
