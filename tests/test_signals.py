"""Rates and records fit together."""

from fractions import Fraction

import numpy as np
import pytest

from aqaa import signals
from aqaa.signals import CodePair, Waveform


def test_the_rates_are_the_papers() -> None:
    assert signals.LINGUISTIC_RATE_HZ == Fraction(50, 3)
    assert signals.SEMANTIC_RATE_HZ == 25
    assert signals.AUDIO_TOKEN_RATE_HZ == Fraction(125, 3)


def test_a_group_is_whole_in_every_unit() -> None:
    assert signals.GROUP_S * signals.QUESTION_RATE_HZ == signals.GROUP_SAMPLES == 1920
    assert signals.GROUP_S * signals.MEL_RATE_HZ == signals.GROUP_FRAMES == 12
    assert signals.GROUP_FRAMES % signals.LINGUISTIC_PER_GROUP == 0
    assert signals.GROUP_FRAMES % signals.SEMANTIC_PER_GROUP == 0


@pytest.mark.parametrize(
    ("linguistic", "semantic", "groups"), [(0, 0, 0), (1, 9, 0), (4, 5, 1), (4, 6, 2), (9, 6, 2)]
)
def test_groups_are_those_both_books_cover(linguistic: int, semantic: int, groups: int) -> None:
    assert CodePair([0] * linguistic, [0] * semantic).groups == groups


def test_a_waveform_knows_its_length() -> None:
    assert Waveform(np.zeros(4000, np.float32), 16000).duration_s == 0.25
