"""Masked DPO against a loop in double, its gradient at masked places, its limits."""

from math import exp, log

import pytest
import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.losses.masked_dpo import (
    MASKS,
    answer_scores,
    kept_kinds,
    masked_dpo,
    preference_figures,
    preference_sums,
)
from aqaa.vocabulary import TOKEN_TYPES

K = len(TOKEN_TYPES)
TEXT = [True] + [False] * (K - 1)


def test_the_masks_by_name() -> None:
    text, linguistic, semantic, marker = (dict.fromkeys([t], True) for t in TOKEN_TYPES)
    for mask, wanted in {
        "audio": text,
        "none": text | linguistic | semantic | marker,
        "text": linguistic | semantic | marker,
        "linguistic": text | semantic | marker,
        "semantic": text | linguistic | marker,
    }.items():
        assert kept_kinds(mask, TOKEN_TYPES) == [wanted.get(t, False) for t in TOKEN_TYPES]
    assert len(MASKS) == 5
    with pytest.raises(UsageError, match="mask=voice is not one of audio, none, text, linguistic,"):
        kept_kinds("voice", TOKEN_TYPES)


def test_scores_against_a_loop() -> None:
    log_probs, kind = torch.randn(12), torch.randint(K, (12,))
    answer = torch.tensor([0, 0, 2, 2, 2, 0, 1, 1, 3, 3, 0, 3])
    expected = [[0.0] * K for _ in range(5)]
    for value, a, k in zip(log_probs.tolist(), answer.tolist(), kind.tolist(), strict=True):
        expected[a][k] += value
    found = answer_scores(log_probs, answer, kind, answers=5, kinds=K)
    assert found.shape == (5, K)
    for mine, wanted in zip(found.tolist(), expected, strict=True):
        assert mine == pytest.approx(wanted)


@pytest.mark.parametrize("mask", MASKS)
def test_loss_and_gradients_against_a_loop_in_double(mask: str) -> None:
    """With the factor of each position derived by hand: -beta * sigmoid(-margin) / B."""
    kept, beta, pairs, positions = kept_kinds(mask, TOKEN_TYPES), 0.3, 3, 40
    generator = torch.Generator().manual_seed(5)
    answer = torch.randint(2 * pairs, (positions,), generator=generator)
    kind = torch.randint(K, (positions,), generator=generator)
    log_probs = -2 * torch.rand(positions, generator=generator, dtype=torch.float64)
    reference = -8 * torch.rand(2 * pairs, K, generator=generator, dtype=torch.float64)
    log_probs.requires_grad_()
    scores = answer_scores(log_probs, answer, kind, answers=2 * pairs, kinds=K)
    out = masked_dpo(*scores.chunk(2), *reference.chunk(2), beta=beta, keep=kept)
    out.loss.backward()

    margins, parts = [], [[0.0] * K for _ in range(pairs)]
    for pair in range(pairs):
        for row, sign in ((pair, 1), (pair + pairs, -1)):
            for k in range(K):
                parts[pair][k] -= sign * beta * float(reference[row, k])
        for i in range(positions):
            if int(answer[i]) % pairs == pair:
                sign = 1 if int(answer[i]) < pairs else -1
                parts[pair][int(kind[i])] += sign * beta * float(log_probs[i])
        margins.append(sum(x for x, keeps in zip(parts[pair], kept, strict=True) if keeps))
    loss = sum(log(1 + exp(-m)) for m in margins) / pairs
    assert float(out.loss) == pytest.approx(loss, abs=1e-12)
    assert out.margin.tolist() == pytest.approx(margins, abs=1e-12)
    for mine, wanted in zip(out.margins.tolist(), parts, strict=True):
        assert mine == pytest.approx(wanted, abs=1e-12)
    assert float(out.accuracy) == pytest.approx(sum(m > 0 for m in margins) / pairs)
    assert log_probs.grad is not None
    for i in range(positions):
        a = int(answer[i])
        sign = -1 if a < pairs else 1
        wanted = sign * beta / (1 + exp(margins[a % pairs])) / pairs
        found = float(log_probs.grad[i])
        if kept[int(kind[i])]:
            assert found == pytest.approx(wanted, abs=1e-12) and found != 0
        else:
            assert found == 0


def _loss(log_probs: Tensor, kind: Tensor, keep: list[bool] = TEXT, beta: float = 0.5) -> Tensor:
    answer = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    scores = answer_scores(log_probs, answer, kind, answers=2, kinds=K)
    zero = torch.zeros(1, K)
    return masked_dpo(scores[:1], scores[1:], zero, zero, beta=beta, keep=keep).loss


@pytest.mark.parametrize("value", [-3.0, -1e4, float("-inf"), float("nan")])
def test_the_gradient_at_masked_places_is_exactly_zero(value: float) -> None:
    kind = torch.tensor([0, 1, 0, 2, 3, 0, 0, 1])
    log_probs = -torch.rand(8)
    log_probs[kind != 0] = value
    log_probs.requires_grad_()
    _loss(log_probs, kind).backward()
    assert log_probs.grad is not None
    assert (log_probs.grad[kind != 0] == 0).all()
    assert (log_probs.grad[kind == 0] != 0).all()
    assert log_probs.grad.isfinite().all()


def test_masked_values_do_not_matter() -> None:
    kind, log_probs = torch.tensor([0, 1, 0, 2, 3, 0, 0, 1]), -torch.rand(8)
    other = torch.where(kind == 0, log_probs, -7.0)
    assert torch.equal(_loss(log_probs, kind), _loss(other, kind))


def test_with_everything_masked_nothing_is_learnt() -> None:
    log_probs = torch.randn(8, requires_grad=True)
    loss = _loss(log_probs, torch.zeros(8, dtype=torch.long), keep=[False] * K)
    loss.backward()
    assert loss.item() == pytest.approx(log(2))
    assert log_probs.grad is not None
    assert (log_probs.grad == 0).all()


def _one_kind(*scores: float) -> Tensor:
    return torch.tensor(scores)[:, None]


ONE = [True]


def test_beta_limits() -> None:
    chosen, rejected, zero = _one_kind(-1.0, -5.0), _one_kind(-4.0, -2.0), _one_kind(0.0, 0.0)
    flat = masked_dpo(chosen, rejected, zero, zero, beta=0, keep=ONE)
    assert float(flat.loss) == pytest.approx(log(2))
    steep = masked_dpo(chosen, rejected, zero, zero, beta=1e4, keep=ONE)
    # Right by a mile costs nothing, wrong by a mile costs the margin itself.
    assert float(steep.loss) == pytest.approx(3e4 / 2)
    assert steep.loss.isfinite()
    assert float(steep.accuracy) == 0.5


def test_at_the_reference_the_loss_is_log_two_and_pushes_apart() -> None:
    chosen, rejected = (_one_kind(-3.0).requires_grad_() for _ in range(2))
    out = masked_dpo(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.2, keep=ONE)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(log(2))
    assert chosen.grad is not None and rejected.grad is not None
    assert float(chosen.grad) == pytest.approx(-0.1)
    assert float(rejected.grad) == pytest.approx(0.1)


def test_figures_against_a_loop() -> None:
    pairs, keep = 20, [True, False, True, False]
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(4, pairs, K, generator=generator)
    found = masked_dpo(*scores, beta=0.5, keep=keep)
    sizes = torch.randint(0, 3, (2 * pairs, K), generator=generator).float()
    sizes[0] = sizes[pairs]  # a pair of equal length
    alike = torch.randint(0, 2, (pairs, K), generator=generator).float()
    alike[1] = 1.0
    sums = preference_sums(found, sizes, alike, keep)
    shown = {k: float(v) for k, v in preference_figures(sums, TOKEN_TYPES).items()}

    wanted: dict[str, float] = {}
    for k, kind in enumerate(TOKEN_TYPES):
        wanted[f"{kind}_margin"] = sum(float(m[k]) for m in found.margins) / pairs
        gaps = [float(sizes[i, k] - sizes[i + pairs, k]) for i in range(pairs)]
        wanted[f"{kind}_longer_tokens"] = sum(gaps) / pairs
        wanted[f"{kind}_ties"] = sum(float(a[k]) for a in alike) / pairs
    ties = unequal = longer = 0
    for i in range(pairs):
        ties += all(alike[i, k] == 1 for k in range(K) if keep[k])
        gap = sum(float(sizes[i, k] - sizes[i + pairs, k]) for k in range(K) if keep[k])
        unequal += gap != 0
        longer += gap * float(found.margin[i]) > 0
    wanted |= {"ties": ties / pairs, "length_bias": longer / unequal}
    assert 0 < ties < pairs and 0 < longer < unequal < pairs
    assert shown == pytest.approx(wanted, abs=1e-6)
    nothing = preference_sums(found, torch.ones(2 * pairs, K), alike, keep)
    assert float(preference_figures(nothing, TOKEN_TYPES)["length_bias"]) == 0.5
