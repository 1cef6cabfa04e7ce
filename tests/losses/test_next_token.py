"""The loss over a slot equals cross-entropy whose other ids are at minus infinity."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aqaa.losses.next_token import SlotTable, next_token, token_log_probs

ROWS = {1: [0, 1, 2, 5], 2: [3, 4, 8, 9], 3: [6, 7, 9]}
WEIGHTS = {1: 1.0, 2: 0.5, 3: 0.0}


def tables() -> dict[int, SlotTable]:
    return {s: SlotTable.build(f"slot{s}", r, 10, WEIGHTS[s]) for s, r in ROWS.items()}


def sample(n: int = 30) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(n, 6, generator=generator)
    table = torch.randn(10, 6, generator=generator)
    slots = torch.arange(n) % 4  # slot 0 has no table
    at = torch.randint(3, (n,), generator=generator).tolist()
    targets = [ROWS[s][a] if s else 0 for s, a in zip(slots.tolist(), at, strict=True)]
    return hidden, table, torch.tensor(targets), slots


def masked_logits(hidden: Tensor, table: Tensor, slot: int) -> Tensor:
    mask = torch.full((10,), float("-inf"))
    mask[ROWS[slot]] = 0
    return table @ hidden + mask


def test_it_is_masked_cross_entropy() -> None:
    hidden, table, targets, slots = sample()
    out = next_token(hidden, table, targets, slots, tables())
    sums, counts, right = dict.fromkeys(ROWS, 0.0), dict.fromkeys(ROWS, 0), dict.fromkeys(ROWS, 0)
    for h, target, slot in zip(hidden, targets, slots.tolist(), strict=True):
        if slot:
            logits = masked_logits(h, table, slot)
            sums[slot] += float(F.cross_entropy(logits[None], target[None]))
            counts[slot] += 1
            right[slot] += int(logits.argmax() == target)
    weight = sum(WEIGHTS[s] * counts[s] for s in ROWS)
    expected = sum(WEIGHTS[s] * sums[s] for s in ROWS) / weight
    assert float(out.loss) == pytest.approx(expected, rel=1e-5)
    for slot in ROWS:
        here = slots == slot
        assert float(out.nats[here].sum()) == pytest.approx(sums[slot], rel=1e-5)
        assert int(out.correct[here].sum()) == right[slot]
        assert out.weight[here].tolist() == [WEIGHTS[slot]] * counts[slot]
    assert not out.nats[slots == 0].any() and not out.weight[slots == 0].any()


def test_log_probs_are_those_of_the_loss() -> None:
    hidden, table, targets, slots = sample()
    found = token_log_probs(hidden, table, targets, slots, tables())
    for h, target, slot, value in zip(hidden, targets, slots.tolist(), found, strict=True):
        wanted = masked_logits(h, table, slot).log_softmax(0)[target] if slot else 0.0
        assert float(value) == pytest.approx(float(wanted), abs=1e-5)
    out = next_token(hidden, table, targets, slots, tables())
    for slot in ROWS:
        total = -found[slots == slot].sum()
        assert float(total) == pytest.approx(float(out.nats[slots == slot].sum()), rel=1e-5)


@pytest.mark.parametrize("rows", [None, range(10)])
def test_over_the_whole_table_it_is_the_papers_equation(rows: object) -> None:
    hidden, table, targets, slots = sample()
    whole = {s: SlotTable.build("all", rows, 10, 1.0) for s in range(4)}  # type: ignore[arg-type]
    out = next_token(hidden, table, targets, slots, whole)
    assert float(out.loss) == pytest.approx(float(F.cross_entropy(hidden @ table.T, targets)))


def test_gradients_equal_those_of_masked_cross_entropy() -> None:
    hidden, table, targets, slots = sample()
    hidden.requires_grad_()
    table.requires_grad_()
    next_token(hidden, table, targets, slots, tables()).loss.backward()
    found = [hidden.grad, table.grad]
    hidden.grad = table.grad = None
    total, weight = hidden.new_zeros(()), 0.0
    for i, slot in enumerate(slots.tolist()):
        if slot:
            logits = masked_logits(hidden[i], table, slot)
            total = total + WEIGHTS[slot] * F.cross_entropy(logits[None], targets[i : i + 1])
            weight += WEIGHTS[slot]
    (total / weight).backward()
    for a, b in zip(found, (hidden.grad, table.grad), strict=True):
        assert a is not None and b is not None
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert hidden.grad is not None
    assert (hidden.grad[slots == 0] == 0).all()


def test_nothing_supervised_is_no_loss() -> None:
    hidden, table, targets, slots = sample()
    out = next_token(hidden, table, targets, slots * 0, tables())
    assert float(out.loss) == 0 and not out.nats.any() and not out.weight.any()
    assert token_log_probs(hidden, table, targets, slots * 0, tables()).tolist() == [0] * 30


@pytest.mark.parametrize("function", [next_token, token_log_probs])
def test_a_target_outside_its_slot_is_refused(function: object) -> None:
    hidden, table, targets, slots = sample()
    targets[1] = 9
    with pytest.raises(ValueError, match="target id 9 is not among the rows of slot slot1"):
        function(hidden, table, targets, slots, tables())  # type: ignore[operator]


def test_half_precision_scores_are_summed_in_float() -> None:
    hidden, table, targets, slots = sample()
    half = token_log_probs(hidden.bfloat16(), table.bfloat16(), targets, slots, tables())
    assert half.dtype == torch.float32
    full = token_log_probs(hidden, table, targets, slots, tables())
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)
