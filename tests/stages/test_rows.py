"""Rows with a rate of their own move as separate parameters would, in whole tables and in parts."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from aqaa.errors import UsageError
from aqaa.stages import rows as module
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.stages.rows import SlowRows

ROWS, WIDTH, FIRST_NEW, STEPS = 7, 3, 4, 6
BETAS, EPS, DECAY, LR = (0.8, 0.9), 1e-8, 0.3, 0.02


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(ROWS, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, ROWS, bias=False)


def settings(algorithm: str, **ratios: float | None) -> OptimizerSettings:
    return OptimizerSettings(
        lr=LR,
        algorithm=algorithm,  # type: ignore[arg-type]
        warmup_steps=3,
        weight_decay=DECAY if algorithm == "adamw" else 0.0,
        betas=BETAS,
        **ratios,  # type: ignore[arg-type]
    )


def gradients(net: nn.Module) -> list[dict[str, Tensor]]:
    """For every step and parameter, whatever size a step is."""
    torch.manual_seed(1)
    return [
        {name: torch.randn_like(p) * 10.0 ** (step - 3) for name, p in net.named_parameters()}
        for step in range(STEPS)
    ]


def by_hand(
    start: Tensor, grads: list[Tensor], rates: list[float], factors: list[float], algorithm: str
) -> Tensor:
    """Every row as a parameter of its own, every element for itself, in double precision."""
    out = start.double().clone()
    for row, column in product(*map(range, start.shape)):
        p, m, v = float(start[row, column]), 0.0, 0.0
        for step, (grad, factor) in enumerate(zip(grads, factors, strict=True), start=1):
            g, lr = float(grad[row, column]), rates[row] * factor
            if algorithm == "sgd":
                p -= lr * g
                continue
            p *= 1 - lr * DECAY
            m = BETAS[0] * m + (1 - BETAS[0]) * g
            v = BETAS[1] * v + (1 - BETAS[1]) * g * g
            p -= lr * m / (1 - BETAS[0] ** step) / (math.sqrt(v / (1 - BETAS[1] ** step)) + EPS)
        out[row, column] = p
    return out


@pytest.mark.parametrize("algorithm", ["adamw", "sgd"])
@pytest.mark.parametrize(
    ("embedding", "head", "new"),
    [(1.0, None, 5.0), (5.0, 2.0, 0.5), (0.0, 1.0, 3.0), (2.0, 2.0, 2.0), (1.0, 4.0, 0.0)],
)
def test_rows_move_as_parameters_of_their_own_would(
    algorithm: str, embedding: float, head: float | None, new: float
) -> None:
    net = Net()
    found = settings(
        algorithm, embedding_lr_ratio=embedding, head_lr_ratio=head, new_rows_lr_ratio=new
    )
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    grads = gradients(net)
    built = found.build(net, STEPS, first_new_row=FIRST_NEW)
    for step in range(STEPS):
        for name, p in net.named_parameters():
            p.grad = grads[step][name].clone()
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step()  # type: ignore[index,union-attr]
    factors = [found.factor(step, STEPS) for step in range(STEPS)]
    old = {"embed_tokens": embedding, "lm_head": embedding if head is None else head, "layer": 1.0}
    for path, ratio in old.items():
        name, of_rows = f"{path}.weight", [LR * ratio] * len(start[f"{path}.weight"])
        if path != "layer":
            of_rows[FIRST_NEW:] = [LR * new] * (ROWS - FIRST_NEW)
        wanted = by_hand(start[name], [g[name] for g in grads], of_rows, factors, algorithm)
        moved = net.get_parameter(name).detach()
        torch.testing.assert_close(moved.double(), wanted, rtol=1e-5, atol=1e-6)
        for row, rate in enumerate(of_rows):
            assert moved[row].equal(start[name][row]) is (rate == 0)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("rates", [(1.0, 4.0), (4.0, 1.0)])
def test_a_stretch_of_a_flat_table_has_its_own_of_the_rows(
    ranks: int, rates: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = torch.arange(ROWS * WIDTH).view(ROWS, WIDTH)
    slow = SlowRows.of(table.shape, FIRST_NEW, *rates)
    assert slow is not None and slow.part == 0.25
    wanted = table[:FIRST_NEW] if rates[0] < rates[1] else table[FIRST_NEW:]
    each = -(-table.numel() // ranks)
    flat = torch.cat([table.flatten(), -torch.ones(each * ranks - table.numel())])  # as ZeRO pads
    found = []
    for rank in range(ranks):
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        assert slow.within(table).equal(wanted.flatten())  # a whole table is no stretch
        found.append(slow.within(flat[rank * each : (rank + 1) * each]))
    assert torch.cat(found).tolist() == wanted.flatten().tolist()


def test_without_a_rate_of_their_own_nothing_is_done() -> None:
    optimizer = settings("adamw").build(Net(), STEPS, first_new_row=FIRST_NEW)["optimizer"]
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("network", ["none new", "no tables"])
def test_what_has_no_such_rows_is_refused(network: str) -> None:
    net, first = (Net(), None) if network == "none new" else (nn.Linear(2, 2), FIRST_NEW)
    with pytest.raises(UsageError, match=r"optim.new_rows_lr_ratio=5.0 finds no rows: it is for"):
        settings("adamw", new_rows_lr_ratio=5.0).build(net, STEPS, first_new_row=first)
