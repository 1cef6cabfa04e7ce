"""Packing: every document once an epoch, rows well filled, the same from anywhere."""

from collections import Counter

import numpy as np
import pytest

from aqaa.data.packing import Packing, best_fit, mixture, pack

LENGTHS = np.random.default_rng(5).integers(20, 400, 900).tolist()


def every_row(packing: Packing) -> list[list[int]]:
    """The rows of an epoch, each once."""
    return [packing.documents(number) for number in range(packing.rows)]


def slow_best_fit(lengths: list[int], room: int) -> list[list[int]]:
    """The same by looking at every row."""
    rows: list[list[int]] = []
    for place in range(len(lengths)):
        left = [room - sum(lengths[p] for p in row) for row in rows]
        fitting = [i for i in range(len(rows)) if left[i] >= lengths[place]]
        if fitting:
            rows[min(fitting, key=lambda i: (left[i], i))].append(place)
        else:
            rows.append([place])
    return rows


@pytest.mark.parametrize("room", [400, 512, 1000])
def test_it_is_best_fit(room: int) -> None:
    assert best_fit(LENGTHS[:200], room) == slow_best_fit(LENGTHS[:200], room)


def test_a_document_that_fits_no_row() -> None:
    with pytest.raises(ValueError, match="a document of 11 ids does not fit a row of 10"):
        best_fit([3, 11], 10)


def test_an_epoch_has_every_document_once_and_its_own_order() -> None:
    packing = pack(LENGTHS, row_tokens=1024, seed=3)
    size = packing.rows
    epochs = [[packing.documents(e * size + i) for i in range(size)] for e in range(2)]
    for rows in epochs:
        assert sorted(d for row in rows for d in row) == list(range(len(LENGTHS)))
        assert all(sum(LENGTHS[d] for d in row) <= 1024 for row in rows)
    assert epochs[0] != epochs[1]
    assert sum(LENGTHS) / (size * 1024) > 0.97


def test_a_row_is_a_function_of_seed_and_number_alone() -> None:
    far = pack(LENGTHS, row_tokens=512, seed=3)
    late = far.documents(100_003)
    other = pack(LENGTHS, row_tokens=512, seed=3)
    for number in range(50):
        other.documents(number)
    assert other.documents(100_003) == late
    assert pack(LENGTHS, row_tokens=512, seed=4).documents(100_003) != late


def test_long_documents_are_spread_over_the_rows() -> None:
    packing = pack(LENGTHS, row_tokens=2048, seed=3)
    longest = {int(i) for i in np.argsort(LENGTHS)[-90:]}
    with_one = sum(bool(longest & set(row)) for row in every_row(packing))
    # Sorted, the longest tenth would share a fifth of the rows.
    assert with_one > 0.4 * packing.rows


def test_windows_do_not_lose_or_repeat_documents() -> None:
    many = np.random.default_rng(0).integers(5, 64, 40_000).tolist()  # five windows
    packing = pack(many, row_tokens=128, seed=0)
    assert sorted(d for row in every_row(packing) for d in row) == list(range(len(many)))
    assert sum(many) / (packing.rows * 128) > 0.99


def test_a_mixture_has_its_shares_of_the_ids() -> None:
    lengths = {"a": LENGTHS[:300], "b": LENGTHS[300:400], "c": LENGTHS[400:]}
    shares = {"a": 0.2, "b": 0.5, "c": 0.3, "none": 0.0}
    found = mixture(shares, lengths, seed=1)
    ids = Counter[str]()
    for number in range(len(found.places)):
        name, place = found.at(number)
        ids[name] += lengths[name][place]
    for name in lengths:
        assert ids[name] / sum(ids.values()) == pytest.approx(shares[name], abs=0.01)
    times = Counter(found.at(number) for number in range(len(found.places)))
    for name, row in lengths.items():
        seen = {times[name, place] for place in range(len(row))}
        assert min(seen) >= 1 and max(seen) - min(seen) <= 1
    assert min(times["a", place] for place in range(300)) == 1  # would last longest: comes once
    again, other = (mixture(shares, lengths, seed=seed).places for seed in (1, 2))
    assert np.array_equal(found.places, again) and not np.array_equal(again, other)
