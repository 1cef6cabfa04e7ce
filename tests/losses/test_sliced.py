"""The sliced head equals cross-entropy over whole logits, and never holds them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from aqaa.losses import sliced
from aqaa.losses.next_token import SlotTable, next_token, token_log_probs
from aqaa.losses.sliced import Group, walk

N, D, V = 53, 16, 96
WEIGHTS = (1.0, 3.0, 0.7)
# One slice, slices that do not divide the positions, one position a slice.
SLICES = [1 << 20, 7 * V, V]


def sample(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    table = (0.5 * torch.randn(V, D, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    return hidden, table, targets, torch.arange(N) % 3


def whole() -> dict[int, SlotTable]:
    return {s: SlotTable.build(f"s{s}", None, V, w) for s, w in enumerate(WEIGHTS)}


def by_slot() -> dict[int, SlotTable]:
    """Slot s is decided over the rows s, s + 3, s + 6, …, and all share row 0."""
    return {
        s: SlotTable.build(f"s{s}", sorted({0, *range(s, V, 3)}), V, w)
        for s, w in enumerate(WEIGHTS)
    }


def gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves))


def close(found: Tensor, wanted: Tensor, relative: float) -> None:
    assert float((found - wanted).norm() / wanted.norm()) < relative


@pytest.mark.parametrize("numbers", SLICES)
def test_over_the_table_it_is_weighted_cross_entropy(numbers: int) -> None:
    hidden, table, targets, slots = sample()
    out = next_token(hidden, table, targets, slots, whole(), slice_numbers=numbers)
    weight = torch.tensor(WEIGHTS)[slots]
    nats = F.cross_entropy(hidden @ table.T, targets, reduction="none")
    wanted = (weight * nats).sum() / weight.sum()
    assert float(out.loss) == pytest.approx(float(wanted), abs=1e-7 * float(wanted))
    for found, right in zip(
        gradients(out.loss, hidden, table), gradients(wanted, hidden, table), strict=True
    ):
        close(found, right, 1e-6)


@pytest.mark.parametrize("numbers", SLICES)
@pytest.mark.parametrize("tables", [whole, by_slot])
def test_it_equals_a_loop_in_double(numbers: int, tables) -> None:
    hidden, table, targets, slots = sample()
    if tables is by_slot:
        targets = targets - (targets - slots) % 3  # into the rows of its slot
        targets = targets.clamp(min=0)
    built = tables()
    out = next_token(hidden, table, targets, slots, built, slice_numbers=numbers)
    h, t = hidden.detach().double(), table.detach().double()
    total = weight = 0.0
    d_hidden, d_table = torch.zeros_like(h), torch.zeros_like(t)
    for i in range(N):
        entry = built[int(slots[i])]
        rows = list(range(V)) if entry.rows is None else entry.rows.tolist()
        p = torch.tensor([float(h[i] @ t[r]) for r in rows], dtype=torch.float64).softmax(0)
        k = rows.index(int(targets[i]))
        assert float(out.nats[i]) == pytest.approx(-float(p[k].log()), rel=1e-5)
        assert float(out.entropy[i]) == pytest.approx(-float((p * p.log()).sum()), rel=1e-4)
        assert float(out.correct[i]) == (int(p.argmax()) == k)
        total, weight = total - entry.weight * float(p[k].log()), weight + entry.weight
        for r, row in enumerate(rows):
            g = entry.weight * (float(p[r]) - (r == k))
            d_hidden[i] += g * t[row]
            d_table[row] += g * h[i]
    assert float(out.loss) == pytest.approx(total / weight, rel=1e-6)
    found = gradients(out.loss, hidden, table)
    close(found[0].double(), d_hidden / weight, 1e-6)
    close(found[1].double(), d_table / weight, 1e-6)


def test_the_factor_from_above_reaches_the_gradients() -> None:
    hidden, table, targets, slots = sample()
    out = next_token(hidden, table, targets, slots, whole())
    once = gradients(out.loss, hidden, table)
    again = next_token(hidden, table, targets, slots, whole())
    for a, b in zip(gradients(3 * again.loss, hidden, table), once, strict=True):
        torch.testing.assert_close(a, 3 * b)


@pytest.mark.parametrize("numbers", SLICES)
def test_scores_take_factors_that_come_late(numbers: int) -> None:
    hidden, table, targets, slots = sample()
    found = token_log_probs(hidden, table, targets, slots, whole(), slice_numbers=numbers)
    logits = hidden @ table.T
    wanted = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    factor = torch.linspace(-1, 2, N)
    for a, b in zip(
        gradients((found.sigmoid() * factor).sum(), hidden, table),
        gradients((wanted.sigmoid() * factor).sum(), hidden, table),
        strict=True,
    ):
        close(a, b, 1e-6)


def test_half_precision_has_logits_in_float() -> None:
    hidden, table, targets, slots = sample(torch.bfloat16)
    out = next_token(hidden, table, targets, slots, whole())
    exact_hidden, exact_table = (x.detach().float().requires_grad_() for x in (hidden, table))
    exact = next_token(exact_hidden, exact_table, targets, slots, whole())
    # The inputs are the same numbers, so with logits in float the losses are too.
    assert float(out.loss) == pytest.approx(float(exact.loss), rel=1e-6)
    found = gradients(out.loss, hidden, table)
    assert [g.dtype for g in found] == [torch.bfloat16] * 2
    wanted = gradients(exact.loss, exact_hidden, exact_table)
    for a, b in zip(found, wanted, strict=True):
        close(a.float(), b, 1e-2)


def test_a_label_of_no_probability_has_finite_nats() -> None:
    hidden, table = torch.tensor([[1000.0]]), torch.tensor([[0.0], [1.0]], requires_grad=True)
    label = torch.tensor([0])
    out = next_token(hidden, table, label, label, {0: SlotTable.build("a", None, 2, 1.0)})
    assert float(out.loss) == 1000
    (gradient,) = gradients(out.loss, table)
    assert gradient.tolist() == [[-1000.0], [1000.0]]


def test_what_is_frozen_has_no_gradient_made() -> None:
    hidden, table, targets, slots = sample()
    out = next_token(hidden, table.detach(), targets, slots, whole())
    (found,) = gradients(out.loss, hidden)
    wanted = gradients(next_token(hidden, table, targets, slots, whole()).loss, hidden)[0]
    assert torch.equal(found, wanted)
    group = [Group(torch.arange(N), None, targets)]
    work = walk(hidden, table, group, torch.ones(N), wanted=(True, False))
    assert work.table_gradient is None and work.hidden_gradient is not None


class Largest(TorchDispatchMode):
    """The size of the largest tensor any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


@pytest.mark.parametrize(("function", "share"), [(next_token, 1), (token_log_probs, 2)])
def test_no_tensor_is_larger_than_a_slice(function, share: int) -> None:
    hidden, table, targets, slots = sample()
    with Largest() as seen:
        out = function(hidden, table, targets, slots, whole(), slice_numbers=20 * share * V)
        (out.loss if function is next_token else out.sum()).backward()
    assert seen.numbers == 20 * V < N * V  # the table itself has 16 V


@pytest.mark.parametrize(("numbers", "again"), [(2 * N * V, 0), (40 * V, 2), (2 * V, N - 1)])
def test_logits_of_half_a_slice_wait_for_their_factors(
    numbers: int, again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = sliced._product

    def product(a: Tensor, b: Tensor, exact: torch.dtype) -> Tensor:
        made.append(b.shape[1])
        return real(a, b, exact)

    monkeypatch.setattr(sliced, "_product", product)
    hidden, table, targets, slots = sample()
    one = {0: SlotTable.build("all", None, V, 1.0)}
    found = token_log_probs(hidden, table, targets, 0 * slots, one, slice_numbers=numbers)
    slices = made.count(V)
    found.sum().backward()
    assert made.count(V) == slices + again
