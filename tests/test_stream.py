"""The layout in both directions: what is built is read back, what the grammar lets pass is read."""

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aqaa.errors import UsageError
from aqaa.grammar import AnswerGrammar, Labels, Mode, Slot, slot_ids
from aqaa.signals import PER_GROUP, Books, CodePair, Dialogue, Turn
from aqaa.stream import History, Stream, StreamLayout, audio_ids, code_pair, whole_groups
from aqaa.vocabulary import Vocabulary

V = Vocabulary(50)
LAYOUT = StreamLayout()


class Numbers:
    """Text of numbers, each its own id; a role header is id 5."""

    def encode(self, text: str) -> list[int]:
        return [5] if text.endswith("\n") else [int(word) for word in text.split()]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, ids))


T = Numbers()


def pair(groups: int, seed: int = 0, extra: tuple[int, int] = (0, 0)) -> CodePair:
    linguistic = [(seed * 7 + i * 13) % 1024 for i in range(2 * groups + extra[0])]
    return CodePair(linguistic, [(seed * 11 + i * 17) % 4096 for i in range(3 * groups + extra[1])])


BOOKS: tuple[Books, ...] = ("both", "linguistic", "semantic")


def layout_of(
    text: int | None, groups: int | None, bare: bool, labels: Labels, books: Books
) -> StreamLayout:
    """Audio blocks of so many groups, of whatever books."""
    question: Literal["both", "linguistic"] = "linguistic" if bare else "both"
    audio = None if groups is None else groups * sum(PER_GROUP[books])
    return StreamLayout(text, audio, "both" if books == "semantic" else question, labels, books)


layouts = st.builds(
    layout_of,
    st.sampled_from([None, 1, 3, 6, 10]),
    st.sampled_from([None, 1, 3, 10]),
    st.booleans(),
    st.sampled_from(["kept", "removed", "pre_interleaved"]),
    st.sampled_from(BOOKS),
)
texts = st.integers(0, 45).map(lambda n: " ".join(str(8 + i % 42) for i in range(n)))
pairs = st.builds(pair, st.integers(0, 12), st.integers(0, 500))
speeches = st.lists(pairs, max_size=4)
many = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def spoken(text: str, speech: list[CodePair]) -> Turn:
    return Turn("assistant", text, speech, loss=True)


def answer_of(layout: StreamLayout, turn: Turn) -> Stream:
    """Ids and slots of one assistant turn, without its header."""
    stream = layout.encode([turn], T, V)
    skip = len(layout.prompt([], T, V))
    return Stream(stream.ids[skip:], stream.slots[skip:])


def mode_of(turn: Turn) -> Mode:
    return "text" if not turn.speech else "both" if turn.text else "speech"


# ---- there and back


@many
@given(layouts, texts, speeches)
def test_what_is_built_is_read_back(
    layout: StreamLayout, text: str, speech: list[CodePair]
) -> None:
    question = Turn("human", "9 9", [pair(2)])
    dialogue = [question, spoken(text, speech)]
    stream, prompt = layout.encode(dialogue, T, V), layout.prompt([question], T, V)
    assert stream.ids[: len(prompt)] == prompt
    answer = layout.parse(stream.ids[len(prompt) :], T, V)
    assert answer.complete
    assert answer.text == text
    written = [whole_groups(p, layout.books) for p in speech]
    if speech and layout.labels == "removed":
        whole = CodePair(
            [c for p in written for c in p.linguistic], [c for p in written for c in p.semantic]
        )
        assert answer.speech == [whole]
    else:
        assert answer.speech == written


@many
@given(layouts, texts, speeches)
def test_the_grammar_accepts_what_is_built_and_its_slots_hold_it(
    layout: StreamLayout, text: str, speech: list[CodePair]
) -> None:
    turn = spoken(text, speech)
    answer = answer_of(layout, turn)
    grammar = AnswerGrammar(layout, V, mode_of(turn))
    for token, slot in zip(answer.ids, answer.slots, strict=True):
        assert not grammar.finished
        assert grammar.slot == slot
        assert grammar.allows(token)
        if slot == Slot.FORCED:
            assert grammar.forced == token == V.audio_start
        else:
            assert grammar.forced is None
            assert token in layout.slot_ids(Slot(slot), V)
            assert token not in grammar.refused()
        grammar.advance(token)
    assert grammar.finished


@many
@given(layouts, st.sampled_from(["text", "speech", "both"]), st.integers(0, 10**6))
def test_every_walk_of_the_grammar_ends_and_is_read(
    layout: StreamLayout, mode: Mode, seed: int
) -> None:
    random_ = random.Random(seed)
    grammar = AnswerGrammar(layout, V, mode)
    walk: list[int] = []
    text: list[int] = []
    while not grammar.finished:
        assert len(walk) < 5000, "the walk does not end"
        options = _options(grammar)
        # Closing ids come up as often as they would in an answer of some length.
        closing = [t for t in options if t in (V.eot, V.text_end, V.audio_end)]
        close = closing and (len(closing) == len(options) or random_.random() < 0.2)
        token = random_.choice(closing if close else options)
        walk.append(token)
        text += [token] if token < V.text_tokens and token != V.eot else []
        grammar.advance(token)
    assert walk[-1] == V.eot
    answer = layout.parse(walk, T, V)
    assert answer.complete
    assert answer.text == T.decode(text)
    audio = [t for t in walk if V.linguistic_start <= t < V.marker_start]
    assert [t for p in answer.speech for t in audio_ids(p, V, layout.books)] == audio
    assert len(answer.speech) == walk.count(V.audio_start) == walk.count(V.audio_end)
    assert bool(answer.speech) == (mode != "text")
    if layout.labels == "removed":
        assert len(answer.speech) <= 1
    with pytest.raises(ValueError, match="not allowed"):
        grammar.advance(V.eot)


def _options(grammar: AnswerGrammar) -> list[int]:
    if grammar.forced is not None:
        return [grammar.forced]
    refused = set(grammar.refused())
    options = [t for t in slot_ids(grammar.slot, V, grammar.books) if t not in refused]
    sample = [t for t in options if t in (V.eot, V.text_end, V.audio_end, V.audio_start)]
    sample += options[:3] + options[-3:]
    assert all(grammar.allows(t) for t in sample)
    assert not any(grammar.allows(t) for t in refused)
    return [t for t in sample if t not in (V.pad, V.bos, V.bot)]


@pytest.mark.parametrize("mode", ["text", "speech", "both"])
@pytest.mark.parametrize("labels", ["kept", "removed", "pre_interleaved"])
@pytest.mark.parametrize("books", BOOKS)
def test_what_is_allowed_is_the_slot_without_the_refused(
    mode: Mode, labels: Labels, books: Books
) -> None:
    random_ = random.Random(0)
    layout = layout_of(3, 1, False, labels, books)
    grammar = AnswerGrammar(layout, V, mode)
    for _ in range(25):
        allowed = [t for t in range(-1, V.rows) if grammar.allows(t)]
        inside = [grammar.forced] if grammar.forced else layout.slot_ids(grammar.slot, V)
        assert allowed == sorted(set(inside) - set(grammar.refused()))
        assert not {V.pad, V.bos, V.bot} & set(allowed)
        if allowed == [V.eot]:
            break
        grammar.advance(random_.choice([t for t in allowed if t != V.eot]))


# ---- the paper's figures, by hand


def test_ten_text_ids_alternate_with_fifteen_audio_ids() -> None:
    turn = spoken(" ".join(map(str, range(10, 22))), [pair(5)])
    ids = answer_of(LAYOUT, turn).ids
    audio = audio_ids(pair(5), V)
    assert ids == [
        *range(10, 20),
        V.audio_start,
        *audio[:15],
        20,
        21,
        V.text_end,
        *audio[15:],
        V.audio_end,
        V.eot,
    ]


def test_the_slots_by_hand() -> None:
    turn = spoken("10 11", [pair(1)])
    answer = answer_of(StreamLayout(2, 5), turn)
    audio = audio_ids(pair(1), V)
    assert answer.ids == [10, 11, V.audio_start, *audio, V.text_end, V.audio_end, V.eot]
    group = [Slot.LINGUISTIC] * 2 + [Slot.SEMANTIC] * 3
    end = [Slot.TEXT, Slot.LINGUISTIC, Slot.AFTER]
    assert answer.slots == [Slot.TEXT, Slot.TEXT, Slot.FORCED, *group, *end]


def test_a_text_of_one_block_is_the_papers_text_cot() -> None:
    turn = spoken("10 11 12", [pair(2)])
    ids = answer_of(StreamLayout(None, None), turn).ids
    audio = audio_ids(pair(2), V)
    assert ids == [10, 11, 12, V.text_end, V.audio_start, *audio, V.audio_end, V.eot]


@pytest.mark.parametrize(
    ("labels", "markers"), [("kept", 2), ("removed", 1), ("pre_interleaved", 2)]
)
def test_several_labels(labels: str, markers: int) -> None:
    layout = StreamLayout(10, 15, labels=labels)  # type: ignore[arg-type]
    ids = answer_of(layout, spoken("10 11 12 13", [pair(1), pair(2, 3)])).ids
    assert ids.count(V.audio_start) == ids.count(V.audio_end) == markers
    first = [t for t in ids if V.linguistic_start <= t < V.marker_start]
    assert first == audio_ids(pair(1), V) + audio_ids(pair(2, 3), V)
    if labels == "pre_interleaved":
        assert ids[:4] == [10, 11, V.text_end, V.audio_start]
        assert ids[10:14] == [12, 13, V.text_end, V.audio_start]


def test_the_frame_of_a_dialogue() -> None:
    dialogue: Dialogue = [
        Turn("system", "20"),
        Turn("human", "21", [pair(1)]),
        Turn("assistant", "22", loss=True),
    ]
    stream = LAYOUT.encode(dialogue, T, V)
    audio = audio_ids(pair(1), V)
    question = [V.audio_start, *audio, V.audio_end, 21]
    assert stream.ids == [1, 4, 5, 20, 3, 4, 5, *question, 3, 4, 5, 22, 3]
    assert stream.slots == [0] * (len(stream.ids) - 2) + [Slot.TEXT, Slot.TEXT]
    assert LAYOUT.prompt(dialogue[:2], T, V) == stream.ids[:-2]


def test_a_question_may_carry_the_linguistic_book_alone() -> None:
    layout = StreamLayout(question_books="linguistic")
    ids = layout.encode([Turn("human", "", [pair(2)])], T, V).ids
    codes = [V.linguistic(c) for c in pair(2).linguistic]
    assert ids == [1, 4, 5, V.audio_start, *codes, V.audio_end, 3]


@many
@given(layouts, texts, speeches)
def test_the_length_is_known_without_building(
    layout: StreamLayout, text: str, speech: list[CodePair]
) -> None:
    question = Turn("human", "8 9", [pair(3, extra=(1, 2)), pair(1, extra=(0, 1))])
    tails = [CodePair([*p.linguistic, 1], [*p.semantic, 2, 3]) for p in speech]
    for turn in (spoken(text, speech), spoken(text, tails), Turn("assistant", text)):
        dialogue = [Turn("system", "8"), Turn("human", "9"), question, turn]
        assert layout.length(dialogue, T) == len(layout.encode(dialogue, T, V).ids)


# ---- where the loss is


@many
@given(layouts, texts, speeches, st.booleans(), st.booleans())
def test_loss_stands_on_the_turns_that_ask_for_it(
    layout: StreamLayout, text: str, speech: list[CodePair], first: bool, second: bool
) -> None:
    dialogue = [
        Turn("system", "8"),
        Turn("human", "9", [pair(2)]),
        Turn("assistant", text, speech, loss=first),
        Turn("human", "", [pair(1)]),
        Turn("assistant", text, speech, loss=second),
    ]
    layout = replace(layout, history="audio")  # or only the last answer can be learnt
    stream = layout.encode(dialogue, T, V)
    assert len(stream.ids) == len(stream.slots)
    starts = [i for i, t in enumerate(stream.ids) if t == V.bot]
    owner = [sum(i >= s for s in starts) - 1 for i in range(len(stream.ids))]
    for i, slot in enumerate(stream.slots):
        wanted = (owner[i] == 2 and first) or (owner[i] == 4 and second)
        header = owner[i] >= 0 and i < starts[owner[i]] + 2
        assert (slot != Slot.NONE) == (wanted and not header)


def test_slots_hold_what_they_say() -> None:
    text = [*range(50), V.text_end]
    assert slot_ids(Slot.TEXT, V) == text
    assert slot_ids(Slot.AFTER, V) == [*text, V.audio_start]
    linguistic = slot_ids(Slot.LINGUISTIC, V)
    assert (linguistic[0], linguistic[-2:], len(linguistic)) == (50, [1073, V.audio_end], 1025)
    semantic = slot_ids(Slot.SEMANTIC, V)
    assert (semantic[0], semantic[-1], len(semantic)) == (1074, 5169, 4096)
    assert slot_ids(Slot.NONE, V) == slot_ids(Slot.FORCED, V) == []


# ---- several turns

rounds = st.tuples(texts.filter(bool), pairs, texts.filter(bool), st.lists(pairs, max_size=2))


def dialogue_of(listed: list[tuple[str, CodePair, str, list[CodePair]]]) -> Dialogue:
    """A system turn, then spoken questions and their answers, all of them learnt."""
    found: Dialogue = [Turn("system", "8 8")]
    for asked, question, answer, speech in listed:
        found += [Turn("human", "", [question], words=asked), spoken(answer, speech)]
    return found


def silent(dialogue: Dialogue) -> Dialogue:
    return [replace(turn, loss=False) for turn in dialogue]


@many
@given(layouts, st.lists(rounds, min_size=1, max_size=4), st.sampled_from(get_args(History)))
def test_training_on_an_answer_reads_what_the_decoder_will_see(
    layout: StreamLayout, listed: list[tuple[str, CodePair, str, list[CodePair]]], history: History
) -> None:
    layout = replace(layout, history=history)
    whole = dialogue_of(listed)
    together = layout.encode(whole, T, V) if history == "audio" else None
    for k in range(1, len(listed) + 1):
        before, answer = silent(whole[: 2 * k]), whole[2 * k]
        seen = layout.prompt(before, T, V)
        trained = layout.encode([*before, answer], T, V)
        assert trained.ids[: len(seen)] == seen
        assert set(trained.slots[: len(seen)]) == {Slot.NONE}
        assert Slot.NONE not in trained.slots[len(seen) :]
        alone = layout.encode([answer], T, V)  # the answer is what it is without a history
        assert trained.ids[len(seen) :] == alone.ids[3:]
        assert layout.length([*before, answer], T) == len(trained.ids)
        if together is not None:  # one sequence learns what one for every answer does
            assert together.ids[: len(trained.ids)] == trained.ids
            assert together.slots[len(seen) : len(trained.ids)] == trained.slots[len(seen) :]


def test_the_histories_by_hand() -> None:
    asked = [
        Turn("system", "20"),
        Turn("human", "", [pair(1)], words="21"),
        Turn("assistant", "22", [pair(2)]),
        Turn("human", "23"),
        Turn("assistant", "", [pair(1)], words="24"),
        Turn("human", "", [pair(3)], words="25"),
    ]
    last = [4, 5, V.audio_start, *audio_ids(pair(3), V), V.audio_end, 3, 4, 5]
    system = [1, 4, 5, 20, 3]

    def prompt(history: History) -> list[int]:
        return StreamLayout(history=history).prompt(asked, T, V)

    assert prompt("none") == [*system, *last]
    words = [i for word in (21, 22, 23, 24) for i in (4, 5, word, 3)]
    assert prompt("text") == [*system, *words, *last]
    question = [4, 5, V.audio_start, *audio_ids(pair(1), V), V.audio_end, 3]
    answer = [4, 5, 22, V.text_end, V.audio_start, *audio_ids(pair(2), V), V.audio_end, 3]
    spoken_ = [4, 5, V.audio_start, *audio_ids(pair(1), V), V.audio_end, 3]
    assert prompt("audio") == [*system, *question, *answer, 4, 5, 23, 3, *spoken_, *last]


def test_a_history_that_cannot_be_is_refused() -> None:
    whole = dialogue_of([("9", pair(1), "10", [pair(1)])] * 2)
    for history in ("text", "none"):
        layout = StreamLayout(history=history)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=f"history={history} every answer has a history of"):
            layout.encode(whole, T, V)
    for unsaid in (replace(whole[1], words=""), replace(whole[2], text="", loss=False)):
        dialogue = [*silent(whole[:1]), unsaid, *silent(whole[3:])]
        with pytest.raises(UsageError, match=f"turn of the {unsaid.role} is speech without its"):
            LAYOUT.encode(dialogue, T, V)
    with pytest.raises(ValueError, match=r"2 pieces \['8', '9'\] of 1 stretches"):
        Turn("assistant", "8 9", [pair(1)], pieces=["8", "9"])


@many
@given(layouts, st.lists(st.tuples(texts.filter(bool), pairs), min_size=1, max_size=4))
def test_several_labels_agree_in_builder_mask_grammar_and_parser(
    layout: StreamLayout, listed: list[tuple[str, CodePair]]
) -> None:
    """Kept, removed, pre-interleaved: each label's words beside its speech."""
    said, speech = [text for text, _ in listed], [codes for _, codes in listed]
    turn = Turn("assistant", " ".join(said), speech, loss=True, pieces=said)
    answer = answer_of(layout, turn)
    grammar = AnswerGrammar(layout, V, "both")
    for token, slot in zip(answer.ids, answer.slots, strict=True):
        assert grammar.slot == slot and grammar.allows(token)
        grammar.advance(token)
    assert grammar.finished
    read = layout.parse(answer.ids, T, V)
    whole = [whole_groups(codes, layout.books) for codes in speech]
    joined = CodePair(*([c for p in whole for c in getattr(p, book)]
                        for book in ("linguistic", "semantic")))  # fmt: skip
    assert (read.text, read.complete) == (turn.text, True)
    assert read.speech == ([joined] if layout.labels == "removed" else whole)
    assert layout.length([turn], T) == len(answer.ids) + 3
    if layout.labels == "pre_interleaved":  # each piece as if it were an answer of its own
        pieces = [answer_of(layout, spoken(text, [codes])).ids[:-1] for text, codes in listed]
        assert answer.ids == [*(t for piece in pieces for t in piece), V.eot]
    else:  # the words of all, whatever the borders
        assert answer.ids == answer_of(layout, spoken(turn.text, speech)).ids


# ---- both books, two to three


@many
@given(
    st.integers(0, 12),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.integers(0, 99),
    st.sampled_from(BOOKS),
)
def test_tails_are_dropped_from_the_books(
    groups: int, extra: tuple[int, int], seed: int, books: Books
) -> None:
    long = pair(groups, seed, extra)
    ids = audio_ids(long, V, books)
    group = {"both": "llsss", "linguistic": "ll", "semantic": "sss"}[books]
    tails = {"linguistic": extra[0] // 2, "semantic": extra[1] // 3}
    kept = groups + tails.get(books, min(tails.values()))
    assert len(ids) == len(group) * kept == len(group) * long.groups_of(books)
    assert [V.token_type(t)[0] for t in ids] == list(group) * kept
    two, three = group.count("l"), group.count("s")

    def begin(count: int) -> CodePair:
        return CodePair(long.linguistic[: two * count], long.semantic[: three * count])

    assert whole_groups(long, books) == begin(kept) == code_pair(ids, V, books)
    for cut in range(len(ids)):
        assert code_pair(ids[:cut], V, books) == begin(cut // len(group))


@many
@given(st.integers(0, 40), st.lists(st.integers(1, 9)), st.sampled_from(BOOKS))
def test_ids_that_come_bit_by_bit_are_the_same_groups(
    groups: int, bits: list[int], books: Books
) -> None:
    whole = pair(groups, extra=(1, 2))
    linguistic: list[int] = []
    semantic: list[int] = []
    ids: list[int] = []
    place = 0
    for bit in [*bits, 10**6]:  # each book brings a few codes at a time; whole groups go out
        linguistic += whole.linguistic[place : place + bit]
        semantic += whole.semantic[place : place + bit]
        place += bit
        now = CodePair(linguistic, semantic)
        ids += audio_ids(now, V, books)
        done = now.groups_of(books)
        linguistic = linguistic[done * 2 :]
        semantic = semantic[done * 3 :]
    assert ids == audio_ids(whole, V, books)


@many
@given(layouts, texts, st.lists(pairs, min_size=1, max_size=3), st.integers(0, 400))
def test_a_cut_answer_is_read_as_far_as_it_goes(
    layout: StreamLayout, text: str, speech: list[CodePair], cut: int
) -> None:
    ids = answer_of(layout, spoken(text, speech)).ids
    cut = min(cut, len(ids) - 1)
    answer = layout.parse(ids[:cut], T, V)
    assert not answer.complete
    assert text.startswith(answer.text)
    audio = [t for t in ids[:cut] if V.linguistic_start <= t < V.marker_start]
    read = [t for p in answer.speech for t in audio_ids(p, V, layout.books)]
    assert len(audio) - len(read) < layout.group_tokens
    assert audio[: len(read)] == read


# ---- refusals


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"text_block": 0}, "text_block 0 must be at least 1"),
        ({"audio_block": 0}, "audio_block 0 must be whole groups of 5"),
        ({"audio_block": 12}, "audio_block 12 must be whole groups of 5"),
        ({"audio_block": -5}, "audio_block -5 must"),
        ({"question_books": "semantic"}, "question_books 'semantic' is neither"),
        ({"books": "one"}, "books 'one' is not one of both, linguistic, semantic"),
        ({"books": "linguistic"}, "audio_block 15 must be whole groups of 2"),
        ({"books": "semantic", "question_books": "linguistic"}, "leaves nothing of the one"),
        ({"history": "all"}, "history 'all' is not one of text, audio, none"),
        ({"labels": "lost"}, "labels 'lost' is not one of kept, removed, pre_interleaved"),
    ],
)
def test_an_unfit_layout_is_refused(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        StreamLayout(**wrong)  # type: ignore[arg-type]


def test_loss_on_a_spoken_question_is_refused() -> None:
    with pytest.raises(UsageError, match="loss on a spoken question"):
        LAYOUT.encode([Turn("human", "", [pair(1)], loss=True)], T, V)


@pytest.mark.parametrize("word", ["0", "1", "3", "4"])
def test_a_control_id_in_an_answer_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match=f"id {word} cannot be learnt .* answer '9 {word} 9'"):
        LAYOUT.encode([Turn("assistant", f"9 {word} 9", [pair(1)], loss=True)], T, V)


def test_an_id_without_meaning_is_not_read() -> None:
    for token in (-1, V.used_rows):
        with pytest.raises(ValueError, match=str(token)):
            LAYOUT.parse([8, token], T, V)


def test_a_removed_label_cannot_come_back() -> None:
    grammar = AnswerGrammar(StreamLayout(1, 5, labels="removed"), V, "both")
    for token in [8, V.audio_start, *audio_ids(pair(1), V), 9, V.audio_end]:
        grammar.advance(token)
    assert grammar.slot == Slot.AFTER
    assert not grammar.allows(V.audio_start)
    assert not grammar.allows(V.eot)
    with pytest.raises(ValueError, match=f"id {V.audio_start} is not allowed in slot AFTER"):
        grammar.advance(V.audio_start)
    for token in [10, V.text_end, V.eot]:
        grammar.advance(token)
    assert grammar.finished


@pytest.mark.parametrize("speech", [[], [pair(2)]])
@pytest.mark.parametrize("text", ["", "10 11 12"])
def test_markers_of_our_own_frame_a_base_that_has_none(text: str, speech: list[CodePair]) -> None:
    own = Vocabulary.behind(50, {"pad": None, "bos": None, "eot": None, "bot": None})
    assert min(own.pad, own.bos, own.eot, own.bot) > own.text_end
    turn = spoken(text, speech)
    stream = LAYOUT.encode([turn], T, own)
    prompt = LAYOUT.prompt([], T, own)
    assert prompt == [own.bos, own.bot, 5]
    ids, slots = stream.ids[len(prompt) :], stream.slots[len(prompt) :]
    assert ids[-1] == own.eot
    mode: Mode = "text" if not speech else "both" if text else "speech"
    grammar = AnswerGrammar(LAYOUT, own, mode)
    for token, slot in zip(ids, slots, strict=True):
        assert token in slot_ids(Slot(slot), own) or slot == Slot.FORCED
        for never in (own.pad, own.bos, own.bot):
            assert not grammar.allows(never)
        grammar.advance(token)
    assert grammar.finished
    answer = LAYOUT.parse(ids, T, own)
    assert (answer.text, answer.speech, answer.complete) == (text, speech, True)
