"""CTC against the sum over every path, and the best path."""

from itertools import groupby, product
from math import exp, log

import pytest
import torch

from aqaa.losses.ctc import best_alignment, ctc, greedy_labels


def collapse(path: tuple[int, ...]) -> list[int]:
    return [label for label, _ in groupby(path) if label]


def brute_force(log_probs: torch.Tensor, target: list[int]) -> float:
    """-log of the probability of all paths that read as ``target``."""
    steps, labels = log_probs.shape
    total = 0.0
    for path in product(range(labels), repeat=steps):
        if collapse(path) == target:
            total += exp(sum(float(log_probs[s, p]) for s, p in enumerate(path)))
    return -log(total)


@pytest.mark.parametrize("target", [[], [1], [2, 1], [1, 1], [1, 2, 1]])
def test_ctc_sums_over_every_path(target: list[int]) -> None:
    log_probs = torch.randn(1, 5, 3).log_softmax(-1)
    found = ctc(log_probs, torch.tensor([5.0]), [target])
    expected = brute_force(log_probs[0], target) / max(1, len(target))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_batch_is_summed_and_divided_by_its_labels() -> None:
    log_probs = torch.randn(3, 5, 3).log_softmax(-1)
    steps, targets = torch.tensor([5, 3, 4]), [[1, 2], [2], [1, 2, 1]]
    total = sum(
        brute_force(log_probs[b, : int(steps[b])], target) for b, target in enumerate(targets)
    )
    assert float(ctc(log_probs, steps, targets)) == pytest.approx(total / 6, rel=1e-5)


def test_a_clip_too_short_for_its_labels_counts_nothing() -> None:
    log_probs = torch.randn(2, 4, 3, requires_grad=True)
    loss = ctc(log_probs.log_softmax(-1), torch.tensor([4, 2]), [[1], [1, 1]])
    expected = brute_force(log_probs.detach().log_softmax(-1)[0], [1]) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.isfinite().all()
    assert (log_probs.grad[1] == 0).all()


@pytest.mark.parametrize(
    ("path", "labels"),
    [([], []), ([0, 0], []), ([1, 1, 2], [1, 2]), ([1, 0, 1], [1, 1]), ([0, 2, 2, 0, 2], [2, 2])],
)
def test_the_best_path_is_collapsed(path: list[int], labels: list[int]) -> None:
    padded = torch.tensor([*path, 1, 2])
    log_probs = torch.nn.functional.one_hot(padded, 3).float()
    assert greedy_labels(log_probs, len(path)) == labels == collapse(tuple(path))


def test_a_batch_without_clips_is_nothing() -> None:
    scores = torch.randn(0, 9, 4, requires_grad=True)
    loss = ctc(scores.log_softmax(-1), torch.zeros(0), [])
    loss.backward()
    assert float(loss.detach()) == 0.0


@pytest.mark.parametrize("labels", [[1], [1, 2], [2, 2], [1, 2, 1], []])
def test_the_best_alignment_is_the_best_of_all_paths(labels: list[int]) -> None:
    from itertools import product

    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(len(labels))).log_softmax(-1)

    def spells(path: tuple[int, ...]) -> bool:
        return [p for i, p in enumerate(path) if p and (i == 0 or path[i - 1] != p)] == labels

    paths = [p for p in product(range(3), repeat=6) if spells(p)]
    best = max(paths, key=lambda p: float(sum(scores[i, c] for i, c in enumerate(p))))
    places, place = [], -1
    for i, c in enumerate(best):
        place += bool(c) and (i == 0 or best[i - 1] != c)
        places.append(place if c else None)
    found = best_alignment(scores, labels)
    assert len(found) == (6 if labels else 0)
    for here, wanted in zip(found, places, strict=False):
        assert wanted is None or here == wanted
    for i, wanted in enumerate(places if labels else []):
        if wanted is None:  # a blank belongs to the nearer label
            gap = min(abs(i - k) for k, p in enumerate(places) if p is not None)
            assert found[i] in [places[k] for k in (i - gap, i + gap) if 0 <= k < 6]


def test_a_clip_too_short_to_spell_has_no_alignment() -> None:
    assert best_alignment(torch.randn(2, 3).log_softmax(-1), [1, 1]) == []
