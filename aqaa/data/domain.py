"""What the synthetic corpus talks about: facts, ways to ask for them, voices, styles.

A small closed world: every fact has one answer sentence and two or four wordings of its question.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from aqaa.errors import UsageError

# Words of answers that the recogniser's dictionary lacks, as ARPAbet; it lacks none today.
EXTRA_PRONUNCIATIONS: dict[str, str] = {}

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
COLORS = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "milk": "white",
    "sky": "blue", "sun": "yellow", "chocolate": "brown", "leaf": "green", "ocean": "blue",
    "tomato": "red", "elephant": "gray",
}  # fmt: skip
MORE_COLORS = {
    "banana": "yellow", "lemon": "yellow", "carrot": "orange", "strawberry": "red",
    "pumpkin": "orange", "cherry": "red", "broccoli": "green", "flamingo": "pink",
    "violet": "purple", "crow": "black", "frog": "green", "spinach": "green",
}  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("day", "night"), ("happy", "sad"), ("black", "white"),
    ("open", "closed"), ("up", "down"), ("left", "right"), ("rich", "poor"), ("young", "old"),
    ("summer", "winter"), ("front", "back"),
)  # fmt: skip
# No sheep: the recogniser cannot hear "baa", not even in the synthesiser's own voice.
SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "lion": "roar", "owl": "hoot",
}  # fmt: skip
CAPITALS = {
    "france": "paris", "italy": "rome", "japan": "tokyo", "germany": "berlin", "spain": "madrid",
    "russia": "moscow", "egypt": "cairo", "england": "london", "ireland": "dublin",
    "greece": "athens", "austria": "vienna", "portugal": "lisbon", "canada": "ottawa",
    "cuba": "havana", "norway": "oslo", "poland": "warsaw",
}  # fmt: skip
# (direct question, the same as a clause, answer): the answers run over one block of ten text ids.
EXPLANATIONS = (
    ("how is a rainbow made", "how a rainbow is made",
     "a rainbow is made when light from the sun passes through drops of rain"),
    ("how is bread made", "how bread is made",
     "bread is made from flour and water and then baked in a hot oven"),
    ("why does the moon shine", "why the moon shines",
     "the moon shines at night because it sends back the light of the sun"),
    ("how do birds fly", "how birds fly",
     "birds fly because they have hollow bones and push the air down with wings"),
    ("why is the sea salty", "why the sea is salty",
     "rivers carry salt from the rocks into the sea and it stays there"),
    ("how do plants grow", "how plants grow",
     "plants grow from seeds when they get water and air and warm light"),
    ("how is paper made", "how paper is made",
     "paper is made from wood that people cut and press into thin sheets"),
    ("how is honey made", "how honey is made",
     "bees collect sweet juice from many flowers and turn it into honey"),
    ("why do we sleep", "why we sleep",
     "we sleep so that the body can rest and the mind stays strong"),
    ("why do leaves fall", "why leaves fall",
     "many trees drop their leaves before winter because they must save water"),
    ("how is glass made", "how glass is made",
     "people melt clean sand in a very hot fire and it becomes glass"),
    ("how does a ship float", "how a ship floats",
     "a ship floats because it pushes away enough water to carry its weight"),
)  # fmt: skip

# family -> how often it is drawn
FAMILIES = {
    "col": 3.0, "opp": 3.0, "day": 3.0, "snd": 1.0, "col1": 2.0, "cap": 3.0, "add": 2.5,
    "sub": 1.5, "long": 2.0,
}  # fmt: skip
STYLED_FAMILIES = ("col", "col1", "cap")
_HELD_OUT_WORDINGS = 4  # facts with fewer lose none

QUESTION_RATES_WPM = (135, 210)
QUESTION_PITCHES = (15, 85)
ANSWER_VOICE = "en-us"


def _voices(base: str, variants: str) -> tuple[str, ...]:
    return tuple(f"{base}+{variant}" for variant in variants.split())


VOICES: dict[str, tuple[str, ...]] = {
    "train": (
        "en-us",
        *_voices("en-us", "m1 m2 m3 m4 m6 m7 f1 f2 f3 f4 Andy Annie adam Mike Alicia linda edward"),
        *_voices("en-us", "belinda Alex antonio aunty benjamin boris caleb david Denis Diogo ed"),
        *_voices(
            "en-us", "Gene Gene2 gustave Henrique Hugo iven iven2 iven3 Jacky Lee Marco Mario"
        ),
        *_voices(
            "en-us", "Michael michel miguel Nguyen paul pedro quincy RicishayMax RicishayMax2"
        ),
        *_voices("en-us", "rob robert Storm Tweaky zac anika AnxiousAndy grandpa klatt klatt3"),
        *_voices("en-us", "klatt5 norbert sandro shelby travis victor grandma steph3"),
        *("en-us+Mr serious", "gmw/en", "gmw/en+f2", "gmw/en+m3", "gmw/en-US-nyc+m2"),
        *("gmw/en-GB-x-rp+f4", "gmw/en-US-nyc", "gmw/en-GB-x-rp", "gmw/en-029"),
        "gmw/en-GB-scotland",
    ),
    "validation": (*_voices("en-us", "Andrea max m8 steph2 pablo"), "gmw/en-US-nyc+f1"),
    "test": (*_voices("en-us", "m5 f5 steph john"), "gmw/en-US-nyc+f3", "gmw/en-GB-x-rp+m1"),
}


@dataclass(frozen=True)
class Style:
    """How the answer is to be spoken: the words that ask for it, the synthesiser's settings."""

    name: str
    words: str
    rate_wpm: int
    pitch: int


# Three pitches a third apart, 97, 127 and 173 Hz, none far below the 100 frames a second of a mel:
# of slower pulses it keeps no pitch, and the small vocoder hums at the frame rate instead.
PLAIN = Style("plain", "", 160, 70)
STYLES = (
    PLAIN,
    Style("slow", "slowly", 115, 70),
    Style("quick", "quickly", 220, 70),
    Style("high", "in a high voice", 160, 99),
    Style("low", "in a low voice", 160, 40),
)


@dataclass(frozen=True)
class Fact:
    """One thing to know; ``index`` counts within its family."""

    family: str
    index: int
    wordings: tuple[str, ...]
    answer: str

    @property
    def styles(self) -> tuple[Style, ...]:
        """Styles in which the answer may be asked for."""
        return STYLES if self.family in STYLED_FAMILIES else (PLAIN,)

    def held_out(self, wording: int) -> bool:
        """Whether training never asks in this wording: one of four, another one for each fact."""
        full = len(self.wordings) == _HELD_OUT_WORDINGS
        return full and (self.index + wording) % _HELD_OUT_WORDINGS == _HELD_OUT_WORDINGS - 1


@dataclass(frozen=True)
class Question:
    """A fact asked in one wording, for one style of answer, by one voice."""

    fact: Fact
    wording: int
    style: Style
    voice: str
    rate_wpm: int
    pitch: int

    @property
    def text(self) -> str:
        """The spoken words, with those that ask for the style."""
        return f"{self.fact.wordings[self.wording]} {self.style.words}".strip()

    @property
    def held_out(self) -> bool:
        """Whether training never uses this wording."""
        return self.fact.held_out(self.wording)


def facts(families: Sequence[str] | None = None) -> list[Fact]:
    """Every fact of ``families`` (None: of all), in a fixed order."""
    wanted = _known(families)
    made = (
        _colors("col", COLORS) + _opposites() + _days() + _sounds() + _colors("col1", MORE_COLORS)
    )
    made += _capitals() + _sums() + _explanations()
    return [fact for fact in made if fact.family in wanted]


def _known(families: Sequence[str] | None) -> tuple[str, ...]:
    wanted = tuple(FAMILIES if families is None else families)
    unknown = sorted(set(wanted) - set(FAMILIES))
    if unknown or not wanted:
        raise UsageError(
            f"families {unknown or '[]'} are not known; choose from {', '.join(FAMILIES)}"
        )
    return wanted


def _numbered(family: str, pairs: Sequence[tuple[tuple[str, ...], str]]) -> list[Fact]:
    return [Fact(family, i, wordings, answer) for i, (wordings, answer) in enumerate(pairs)]


def _asked(topic: str, *others: str) -> tuple[str, ...]:
    """Four wordings about one noun phrase; ``others`` are those that differ by family."""
    return (*others, f"tell me {topic}", f"do you know {topic}")


def _colors(family: str, colors: dict[str, str]) -> list[Fact]:
    return _numbered(family, [
        (_asked(f"the color of {thing}", f"what color is {thing}", f"which color is {thing}"),
         f"{thing} is {color}")
        for thing, color in colors.items()
    ])  # fmt: skip


def _opposites() -> list[Fact]:
    both = [pair for a, b in OPPOSITES for pair in ((a, b), (b, a))]
    return _numbered("opp", [
        (_asked(f"the opposite of {word}", f"what is the opposite of {word}",
                f"give me the opposite of {word}"),
         f"the opposite is {opposite}")
        for word, opposite in both
    ])  # fmt: skip


def _days() -> list[Fact]:
    return _numbered("day", [
        (_asked(f"the day {order} {day}", f"what day comes {order} {day}",
                f"which day is {order} {day}"),
         f"it is {DAYS[(i + step) % len(DAYS)]}")
        for i, day in enumerate(DAYS)
        for order, step in (("after", 1), ("before", -1))
    ])  # fmt: skip


def _sounds() -> list[Fact]:
    return _numbered("snd", [
        ((f"what does the {animal} say", f"how does the {animal} sound",
          f"tell me what the {animal} says", f"do you know how the {animal} sounds"),
         f"the {animal} says {sound}")
        for animal, sound in SOUNDS.items()
    ])  # fmt: skip


def _capitals() -> list[Fact]:
    return _numbered("cap", [
        (_asked(f"the capital of {country}", f"what is the capital of {country}",
                f"which city is the capital of {country}"),
         f"the capital of {country} is {city}")
        for country, city in CAPITALS.items()
    ])  # fmt: skip


def _sums() -> list[Fact]:
    pairs = [(a, b) for a in range(1, 6) for b in range(1, 6)]
    plus = [(f"{NUMBERS[a]} plus {NUMBERS[b]}", a + b) for a, b in pairs]
    minus = [(f"{NUMBERS[a]} minus {NUMBERS[b]}", a - b) for a, b in pairs if a >= b]
    return [
        fact
        for family, sums in (("add", plus), ("sub", minus))
        for fact in _numbered(family, [
            ((f"what is {words}", f"how much is {words}"), f"that is {NUMBERS[result]}")
            for words, result in sums
        ])
    ]  # fmt: skip


def _explanations() -> list[Fact]:
    return _numbered("long", [
        (_asked(clause, direct, f"explain {clause}"), answer)
        for direct, clause, answer in EXPLANATIONS
    ])  # fmt: skip


def answers(families: Sequence[str] | None = None) -> list[tuple[str, Style]]:
    """Every (answer text, style) the corpus needs a clip of, once each, in a fixed order."""
    return list(dict.fromkeys((f.answer, style) for f in facts(families) for style in f.styles))


def words(families: Sequence[str] | None = None) -> list[str]:
    """Every word of questions, style requests and answers, sorted."""
    found = facts(families)
    texts = [text for f in found for text in (f.answer, *f.wordings)]
    texts += [style.words for f in found for style in f.styles]
    return sorted({word for text in texts for word in text.split()})


def sample(
    *, count: int, split: str, seed: int, families: Sequence[str] | None = None
) -> list[Question]:
    """Draw ``count`` questions of a split, the same for the same arguments.

    Args:
        count: number of questions.
        split: train, validation or test: its voices; only train avoids the held-out wordings.
        seed: of the draw; splits with the same seed draw independently.
        families: families to draw from (None: all).
    """
    rng = random.Random(f"{seed} {split}")
    by_family: dict[str, list[Fact]] = {}
    for fact in facts(families):
        by_family.setdefault(fact.family, []).append(fact)
    names = list(by_family)
    weights = [FAMILIES[name] for name in names]
    return [
        _draw(rng, rng.choice(by_family[rng.choices(names, weights)[0]]), split)
        for _ in range(count)
    ]


def _draw(rng: random.Random, fact: Fact, split: str) -> Question:
    open_wordings = [
        w for w in range(len(fact.wordings)) if split != "train" or not fact.held_out(w)
    ]
    style = PLAIN
    wording = rng.choice(open_wordings)
    if len(fact.styles) > 1 and rng.random() < 0.5:
        style = rng.choice([s for s in fact.styles if s is not PLAIN])
    return Question(
        fact=fact,
        wording=wording,
        style=style,
        voice=rng.choice(VOICES[split]),
        rate_wpm=rng.randint(*QUESTION_RATES_WPM),
        pitch=rng.randint(*QUESTION_PITCHES),
    )
