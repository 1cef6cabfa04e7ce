"""The codebook against a plain loop: search, moving averages, k-means."""

import pytest
import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.tokenizer import codebook as module
from aqaa.tokenizer.codebook import Codebook


def started(codes: int = 7, width: int = 3, **settings: float) -> Codebook:
    book = Codebook(codes=codes, width=width, **settings)
    generator = torch.Generator().manual_seed(1)
    book.start(torch.randn(50, width, generator=generator), rounds=2, generator=generator)
    return book


def nearest(z: Tensor, vectors: Tensor) -> int:
    distances = [float((z - v).pow(2).sum()) for v in vectors]
    return distances.index(min(distances))


def test_search_finds_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    book, z = started(), torch.randn(4, 9, 3)
    expected = [[nearest(v, book.vectors) for v in row] for row in z]
    assert book.search(z).tolist() == expected
    monkeypatch.setattr(module, "_SEARCH_ROWS", 5)
    assert book.search(z).tolist() == expected


def test_moving_averages_against_a_loop() -> None:
    book = started(decay=0.9)
    counts, sums = book.counts.double(), book.sums.double()
    book.train()
    for step in range(4):
        z, mask = torch.randn(2, 6, 3), torch.ones(2, 6)
        mask[0, 4:] = 0
        before = book.vectors.clone()
        out = book(z, mask)
        seen, added = [0] * 7, torch.zeros(7, 3, dtype=torch.float64)
        for b in range(2):
            for n in range(6):
                code = nearest(z[b, n], before)
                assert int(out.codes[b, n]) == code, step
                assert torch.allclose(out.vectors[b, n], before[code], atol=1e-6)
                if mask[b, n]:
                    seen[code] += 1
                    added[code] += z[b, n]
        for k in range(7):
            counts[k] = 0.9 * counts[k] + 0.1 * seen[k]
            sums[k] = 0.9 * sums[k] + 0.1 * added[k]
        torch.testing.assert_close(book.counts.double(), counts, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            book.vectors.double(), sums / counts[:, None], rtol=1e-4, atol=1e-5
        )


def test_two_ranks_move_the_book_as_one_with_both_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(24, 3)
    whole, halves = started(), [started(), started()]
    codes = whole.search(z)
    whole.update(z, codes)
    shares: list[list[Tensor]] = [[], []]
    for rank in range(2):  # what each would give
        monkeypatch.setattr(module, "total", lambda t, mine=shares[rank]: mine.append(t) or t)
        started().update(z[rank::2], codes[rank::2])
    for rank, half in enumerate(halves):
        other = iter(shares[1 - rank])
        monkeypatch.setattr(module, "total", lambda t, other=other: t + next(other))
        half.update(z[rank::2], codes[rank::2])
    for half in halves:
        torch.testing.assert_close(half.vectors, whole.vectors)
        torch.testing.assert_close(half.counts, whole.counts)


def test_dead_codes_restart_at_given_vectors_and_no_others() -> None:
    book = started()
    book.counts[2] = 0.5 * module.DEAD_COUNT
    before, z = book.vectors.clone(), torch.randn(9, 3)
    assert book.restart(z, generator=torch.Generator().manual_seed(0)) == 1
    assert any(book.vectors[2].equal(v) for v in z)
    assert torch.allclose(book.sums[2], book.vectors[2] * book.counts[2])
    rest = [k for k in range(7) if k != 2]
    assert book.vectors[rest].equal(before[rest])
    assert book.restart(z, generator=torch.Generator()) == 0
    # A code that nothing chooses any more dies in about a hundred steps.
    book.train()
    steps, code = 0, int(book.search(z[:1]))
    far = (book.vectors - z[0]).norm(dim=1).argmax()
    while book.counts[far] >= module.DEAD_COUNT:
        book.update(z[:1], torch.tensor([code]))
        steps += 1
    assert 50 < steps < 300


def test_codes_that_are_not_used_stay_where_they_are() -> None:
    book = started().train()
    near = book.vectors[0].clone()  # every vector of 600 steps falls to one code
    before = book.vectors.clone()
    for _ in range(600):
        book(near.expand(1, 6, 3), torch.ones(1, 6))
    assert book.counts[1:].max() < 1e-5
    torch.testing.assert_close(book.vectors, before, rtol=1e-3, atol=1e-4)
    wanted = before[3] + 0.01  # one that comes back moves to what it is given
    book(wanted.expand(1, 6, 3), torch.ones(1, 6))
    torch.testing.assert_close(book.vectors[3], wanted, rtol=1e-3, atol=1e-4)


def test_the_chosen_vectors_are_those_before_the_step() -> None:
    book, z = started().train(), torch.randn(2, 6, 3)
    before = book.vectors.clone()
    found = book(z, torch.ones(2, 6))
    assert torch.equal(found.chosen, before[found.codes])
    assert not torch.equal(found.chosen, book.vectors[found.codes])


def test_evaluation_moves_nothing() -> None:
    book = started().eval()
    before = {k: v.clone() for k, v in book.state_dict().items()}
    book(torch.randn(2, 6, 3), torch.ones(2, 6))
    assert all(torch.equal(v, before[k]) for k, v in book.state_dict().items())


def test_the_gradient_goes_straight_through() -> None:
    book, z = started().train(), torch.randn(2, 6, 3, requires_grad=True)
    weight = torch.randn(2, 6, 3)
    (book(z, torch.ones(2, 6)).vectors * weight).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, weight)


def test_k_means_against_a_loop() -> None:
    z = torch.randn(40, 2)
    book = Codebook(codes=5, width=2)
    assert not book.active
    book.start(z, rounds=3, generator=torch.Generator().manual_seed(8))
    vectors = z[torch.randperm(40, generator=torch.Generator().manual_seed(8))[:5]].clone()
    for _ in range(3):
        groups: list[list[Tensor]] = [[] for _ in range(5)]
        for v in z:
            groups[nearest(v, vectors)].append(v)
        vectors = torch.stack(
            [torch.stack(g).mean(0) if g else old for g, old in zip(groups, vectors, strict=True)]
        )
    torch.testing.assert_close(book.vectors, vectors, rtol=1e-4, atol=1e-5)
    assert book.counts.tolist() == pytest.approx([max(0.01, len(g)) / 10 for g in groups])
    torch.testing.assert_close(book.sums / book.counts[:, None], book.vectors)
    assert book.active


def test_more_codes_than_vectors_still_start() -> None:
    book = Codebook(codes=30, width=2)
    book.start(torch.randn(6, 2), rounds=2, generator=torch.Generator().manual_seed(0))
    assert book.vectors.isfinite().all()
    assert book.active
    assert len(book.vectors.unique(dim=0)) > 15


def test_the_same_seed_starts_the_same_book() -> None:
    assert torch.equal(started().vectors, started().vectors)


def slow_kmeans(z: Tensor, codes: int, epochs: int, batch: int, seed: int) -> Tensor:
    """Mini-batch k-means, one vector after another, in float64; no code dies here."""
    generator = torch.Generator().manual_seed(seed)
    centres = module.plus_plus(z, codes=codes, generator=generator).double()
    given = [0] * codes
    for _ in range(epochs):
        for rows in torch.randperm(len(z), generator=generator).split(batch):
            assigned = [nearest(z[i], centres) for i in rows]
            for i, code in zip(rows, assigned, strict=True):
                given[code] += 1
                centres[code] += (z[i] - centres[code]) / given[code]
    assert min(given) > 0
    return centres


def blobs(count: int, spread: float = 0.05) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    middles = 4 * torch.randn(count, 6, generator=generator)
    z = middles.repeat(30, 1) + spread * torch.randn(30 * count, 6, generator=generator)
    return z, middles


def test_mini_batch_kmeans_against_a_loop() -> None:
    z, _ = blobs(5, spread=1.5)
    found = module.mini_batch_kmeans(z, codes=5, epochs=3, batch=32, seed=4)
    expected = slow_kmeans(z, codes=5, epochs=3, batch=32, seed=4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_every_cluster_is_found(seed: int) -> None:
    z, middles = blobs(20)
    found = module.mini_batch_kmeans(z, codes=20, batch=64, seed=seed)
    assert torch.equal(found, module.mini_batch_kmeans(z, codes=20, batch=64, seed=seed))
    assert sorted(module.nearest(middles, found).tolist()) == list(range(20))
    torch.testing.assert_close(found[module.nearest(middles, found)], middles, rtol=0, atol=0.05)


def test_a_centre_that_gets_nothing_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    z, middles = blobs(8)
    # A start from which three centres can never get a vector.
    start = torch.cat([middles[:5], 1e4 + torch.zeros(3, 6)])
    monkeypatch.setattr(module, "plus_plus", lambda *a, **k: start.clone())
    found = module.mini_batch_kmeans(z, codes=8, epochs=12, batch=64)
    assert found.abs().max() < 100
    assert len(module.nearest(z, found).unique()) == 8


def test_the_first_centres_lie_apart() -> None:
    z, middles = blobs(12, spread=0.001)
    found = module.plus_plus(z, codes=12, generator=torch.Generator().manual_seed(0))
    assert len(module.nearest(found, middles).unique()) == 12
    same = module.plus_plus(
        torch.ones(5, 2), codes=4, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(same, torch.ones(4, 2))


def test_vectors_that_cannot_be_clustered_are_a_sentence() -> None:
    with pytest.raises(UsageError, match="3 vectors cannot start 4 codes"):
        module.mini_batch_kmeans(torch.randn(3, 2), codes=4)
    with pytest.raises(UsageError, match="NaN"):
        module.mini_batch_kmeans(torch.full((9, 2), torch.nan), codes=4)


def test_a_book_held_is_the_one_searched() -> None:
    book, vectors = Codebook(codes=6, width=3), torch.randn(6, 3)
    book.hold(vectors)
    assert book.active
    assert book.search(vectors).tolist() == list(range(6))
    assert book.search(torch.zeros(2, 0, 3)).shape == (2, 0)
    assert torch.equal(book.sums / book.counts[:, None], vectors)
