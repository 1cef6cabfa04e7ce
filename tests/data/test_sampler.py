"""The order of rows: whole epochs, the same anywhere, similar lengths together."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqaa.data.sampler import BucketSampler, draws
from aqaa.errors import UsageError

LENGTHS = random.Random(0).choices(range(5, 300), k=200)


def sampler(lengths: list[int] = LENGTHS, *, batch: int = 8, seed: int = 0) -> BucketSampler:
    return BucketSampler(lengths, batch=batch, seed=seed, jitter=6.0)


@given(rows=st.integers(1, 60), batch=st.integers(1, 12), seed=st.integers(0, 5))
def test_an_epoch_holds_no_row_twice_and_leaves_less_than_a_batch(
    rows: int, batch: int, seed: int
) -> None:
    batch = min(batch, rows)
    s = sampler(list(range(rows)), batch=batch, seed=seed)
    for epoch in range(3):
        first = epoch * s.steps_per_epoch
        seen = [r for step in range(s.steps_per_epoch) for r in s.rows(first + step)]
        assert len(seen) == len(set(seen)) > rows - batch
        assert set(seen) <= set(range(rows))


def test_every_row_comes_once_an_epoch_and_the_left_over_ones_change() -> None:
    s = sampler(LENGTHS[:192])
    assert sorted(r for step in range(s.steps_per_epoch) for r in s.rows(step)) == [*range(192)]
    s = sampler(LENGTHS[:20], batch=8)
    left = [
        frozenset(range(20)) - {*s.rows(2 * epoch), *s.rows(2 * epoch + 1)} for epoch in range(8)
    ]
    assert len(set(left)) > 1


def test_a_jump_lands_where_walking_does() -> None:
    walked = sampler()
    order = [walked.rows(step) for step in range(3 * walked.steps_per_epoch)]
    for step in (0, 74, 25, 3, 60, 60, 24):
        assert sampler().rows(step) == order[step] == walked.rows(step)
    assert sampler(seed=1).rows(0) != order[0]
    epoch = walked.steps_per_epoch
    assert order[:epoch] != order[epoch : 2 * epoch]


def test_lengths_of_a_batch_are_alike() -> None:
    s = sampler()
    spreads = [
        max(LENGTHS[r] for r in s.rows(i)) - min(LENGTHS[r] for r in s.rows(i))
        for i in range(s.steps_per_epoch)
    ]
    assert statistics.mean(spreads) < 0.1 * (max(LENGTHS) - min(LENGTHS))


@pytest.mark.parametrize("batch", [0, 5])
def test_a_batch_that_the_rows_do_not_make_is_an_error_of_use(batch: int) -> None:
    with pytest.raises(UsageError, match=f"4 rows do not make batches of {batch}"):
        sampler([1, 2, 3, 4], batch=batch)


def test_draws_follow_the_shares_and_count_per_source() -> None:
    plan = draws({"a": 3.0, "b": 1.0, "never": 0.0}, 4000, seed=1)
    names = [name for name, _ in plan]
    assert 0.72 < names.count("a") / 4000 < 0.78 and "never" not in names
    for name in ("a", "b"):
        assert [n for found, n in plan if found == name] == [*range(names.count(name))]


def test_a_longer_plan_begins_like_a_shorter_one() -> None:
    shares = {"a": 3.0, "b": 1.0}
    assert draws(shares, 100, seed=1)[:37] == draws(shares, 37, seed=1)
    assert draws(shares, 100, seed=1) != draws(shares, 100, seed=2)


@pytest.mark.parametrize("shares", [{}, {"a": 0.0}, {"a": 1.0, "b": -1.0}])
def test_shares_that_make_no_mixture(shares: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must not be negative and not all zero"):
        draws(shares, 1, seed=0)
