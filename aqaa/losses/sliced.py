"""Cross-entropy in slices of positions: of all logits only one slice ever exists.

Letters: N positions, D width, V rows of the table, S rows a position is decided over, n positions
of a slice.

With g = p - onehot, the gradient of a position's nats by its logits, the gradients of hidden states
and table need only g, and g needs only the slice's own logits. So both are made while the slice is
there, and nothing is kept for the backward pass but what has the size of the inputs. Where factors
come late, as in DPO, half a slice's worth of logits waits for them, and the rest are made again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Logits alive at a time: 128 MB in float32, 449 positions over Step-1's 74,752 rows.
SLICE_NUMBERS = 1 << 25
# The softmax passes over the slice in pieces that stay in a core's cache; a GPU wants few launches.
_CACHED_NUMBERS = 1 << 20


@dataclass(frozen=True)
class Group:
    """Positions that are decided over the same rows.

    ``places`` (n,) index the hidden states; ``rows`` (S,) the table (None: all of it); ``labels``
    (n,) index ``rows``.
    """

    places: Tensor
    rows: Tensor | None
    labels: Tensor


@dataclass(frozen=True)
class Work:
    """What a pass over all slices leaves.

    ``nats``, ``entropy`` (of the prediction, in nats) and ``correct`` (0 or 1) are (N,) in float32,
    of doubles in float64, zero where no group has the position; gradients (N, D) and (V, D) are
    None where not wanted.
    """

    nats: Tensor
    entropy: Tensor
    correct: Tensor
    hidden_gradient: Tensor | None
    table_gradient: Tensor | None


@torch.no_grad()
def walk(
    hidden: Tensor,
    table: Tensor,
    groups: list[Group],
    coefficient: Tensor | None = None,
    *,
    wanted: tuple[bool, bool] = (False, False),
    slice_numbers: int = SLICE_NUMBERS,
    waiting: list[Tensor] | None = None,
) -> Work:
    """Nats, entropy and hits of every position, and the gradients of sum(coefficient * nats).

    Args:
        hidden: (N, D).
        table: (V, D).
        groups: what each position is decided over; a position stands in one group at most.
        coefficient: (N,), needed for gradients.
        wanted: whether the gradient of ``hidden``, and of ``table``, is.
        slice_numbers: logits alive at a time.
        waiting: without ``coefficient`` it is given the logits of the first slices; a second
            walk, with coefficients, takes them out again. They have half of ``slice_numbers``.
    """
    if waiting is not None:
        slice_numbers //= 2
    room = slice_numbers
    exact = torch.promote_types(hidden.dtype, torch.float32)
    figures = torch.zeros(3, len(hidden), dtype=exact, device=hidden.device)
    d_hidden = torch.zeros_like(hidden) if wanted[0] else None
    d_table = torch.zeros_like(table, dtype=exact) if wanted[1] else None
    for group in groups:
        rows = (table if group.rows is None else table[group.rows]).to(hidden.dtype)
        d_rows = d_table
        if d_table is not None and group.rows is not None:
            d_rows = torch.zeros_like(rows, dtype=exact)
        for places, labels in _slices(group, max(1, slice_numbers // len(rows))):
            h = hidden[places]
            given = waiting.pop(0) if waiting and coefficient is not None else None
            logits = _product(h, rows.T, exact) if given is None else given
            room -= logits.numel()
            if waiting is not None and coefficient is None and room >= 0:
                waiting.append(logits)
            scale = coefficient[places] if coefficient is not None and any(wanted) else None
            figures[:, places] = _turn_into_gradient(logits, labels, scale)
            g = logits.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[places] = _product(g, rows, exact).to(hidden.dtype)
            if d_rows is not None:
                _add_product(d_rows, g.T, h)
        if d_table is not None and group.rows is not None:
            assert d_rows is not None
            d_table.index_add_(0, group.rows, d_rows)
    if d_table is not None:
        d_table = d_table.to(table.dtype)
    nats, entropy, correct = figures.unbind()
    return Work(nats, entropy, correct, d_hidden, d_table)


def _slices(group: Group, positions: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(group.places.split(positions), group.labels.split(positions), strict=True)


def _turn_into_gradient(logits: Tensor, labels: Tensor, scale: Tensor | None) -> Tensor:
    """Nats, entropy and hits (3, n) of logits (n, S), which become scale * (p - onehot) in place.

    A hit needs no argmax: the label's logit is the largest. ``scale`` None: logits stay.
    """
    out = logits.new_empty(3, len(logits))
    numbers = _CACHED_NUMBERS if logits.device.type == "cpu" else logits.numel()
    step = max(1, numbers // logits.shape[1])
    for begin in range(0, len(logits), step):
        here = slice(begin, begin + step)
        z, label = logits[here], labels[here, None]
        top, p = z.amax(-1), z.softmax(-1)
        # The most likely id's probability is never tiny, the label's may be: log(sum) from there.
        log_sum = top - p.amax(-1).log()
        mine = z.gather(-1, label)[:, 0]
        mean = torch.linalg.vecdot(p, z)
        out[0, here], out[1, here], out[2, here] = log_sum - mine, log_sum - mean, mine >= top
        if scale is not None:
            torch.mul(p, scale[here, None], out=z)
            z.scatter_add_(-1, label, -scale[here, None].to(z.dtype))
    return out


def _product(a: Tensor, b: Tensor, exact: torch.dtype) -> Tensor:
    """``a @ b`` summed and returned in ``exact``, whatever precision a and b have."""
    if a.dtype == exact:
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=exact)
    return a.to(exact) @ b.to(exact)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``, in the precision of ``total``."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += _product(a, b, total.dtype)


class MeanNats(torch.autograd.Function):
    """sum(coefficient * nats), with its gradients made on the way forward.

    Returns the sum and, not to be differentiated, nats, entropy and hits (N,).
    """

    @staticmethod
    def forward(
        ctx: "torch.autograd.function.FunctionCtx",
        hidden: Tensor,
        table: Tensor,
        coefficient: Tensor,
        groups: list[Group],
        wanted: tuple[bool, bool],
        slice_numbers: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Walk all slices once."""
        work = walk(
            hidden, table, groups, coefficient, wanted=wanted, slice_numbers=slice_numbers
        )
        ctx.gradients = (work.hidden_gradient, work.table_gradient)  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(work.nats, work.entropy, work.correct)
        total = (coefficient * work.nats).sum()
        return total, work.nats, work.entropy, work.correct

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *upstream: Tensor) -> tuple:
        """Scale what forward left, and let go of it: autograd may then keep it without a copy."""
        gradients = ctx.gradients  # type: ignore[attr-defined]
        ctx.gradients = (None, None)  # type: ignore[attr-defined]
        scaled = [None if g is None else g.mul_(upstream[0].to(g.dtype)) for g in gradients]
        return (*scaled, None, None, None, None)


class Nats(torch.autograd.Function):
    """Nats (N,) of every position; backward walks the slices again, as its factors come late."""

    @staticmethod
    def forward(
        ctx: "torch.autograd.function.FunctionCtx",
        hidden: Tensor,
        table: Tensor,
        groups: list[Group],
        learns: bool,
        slice_numbers: int,
    ) -> Tensor:
        """Walk all slices once."""
        ctx.save_for_backward(hidden, table)
        waiting: list[Tensor] | None = [] if learns else None
        ctx.kept = groups, slice_numbers, waiting  # type: ignore[attr-defined]
        return walk(hidden, table, groups, slice_numbers=slice_numbers, waiting=waiting).nats

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *upstream: Tensor) -> tuple:
        """Walk them again with the factors of each position."""
        hidden, table = ctx.saved_tensors  # type: ignore[attr-defined]
        groups, numbers, waiting = ctx.kept  # type: ignore[attr-defined]
        needed = ctx.needs_input_grad  # type: ignore[attr-defined]
        work = walk(
            hidden, table, groups, upstream[0], wanted=(needed[0], needed[1]),
            slice_numbers=numbers, waiting=waiting,
        )  # fmt: skip
        return work.hidden_gradient, work.table_gradient, None, None, None
