"""Fit a solver of few calls to a trained flow.

    python tools/fit_solver.py flow=FOLDER tokens=STORE

A solver is a table of strides and weights (aqaa/vocoder/solver.py). This one is moved by Adam until
the log-mels it makes of stored clips lie as near as they can to where the flow itself leads, from
the same noise: 40 calls of the midpoint rule. Weights of a call sum to its stride and strides to
one, so that a straight flow stays exact. Keys: ``flow`` (a walkthrough-size flow), ``tokens`` (a
store with both books), ``steps``, ``guidance``, ``clips``, ``rounds``, ``seed``. The last line is
JSON: strides, earlier weights, and how far off they are on clips that were not fitted to, beside
ten Euler steps. ``fitted`` of aqaa/vocoder/solver.py came so, from 19 answers and 20 questions of
the walkthrough, in seven minutes of a busy core.

Letters: K calls.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools/bench")]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from turns import told  # noqa: E402

from aqaa.data.token_store import TokenStore  # noqa: E402
from aqaa.errors import UsageError  # noqa: E402
from aqaa.vocoder.flow import FlowVocoder, unpack  # noqa: E402
from aqaa.vocoder.solver import follow, named  # noqa: E402

ASKED = {"flow": "runs/vocoder_flow/model", "tokens": "runs/tokens", "steps": "4",
         "guidance": "0.7", "clips": "40", "rounds": "240", "seed": "0"}  # fmt: skip
EXACT = named("midpoint", 40)
BATCH = 2  # clips a round


class Case(NamedTuple):
    """A clip's field, the noise it starts from and the log-mel it leads to."""

    velocity: Callable[[Tensor, Tensor], Tensor]
    start: Tensor
    mel: Tensor

    def off(self, end: Tensor) -> Tensor:
        """Mean absolute distance of a log-mel, given as pairs of frames (1, 160, P)."""
        return (unpack(end) - self.mel).abs().mean()


def cases(
    flow: FlowVocoder, store: TokenStore, *, count: int, guidance: float, seed: int
) -> list[Case]:
    """Clips of a store with both books, spread over it."""
    keys = [key for key in store.keys() if store[key].groups]
    if len(keys) < 2:
        raise UsageError(f"{store.folder} holds {len(keys)} clips with both books: 2 are needed")
    chance, found = torch.Generator().manual_seed(seed), []
    for key in keys[:: max(1, len(keys) // count)][:count]:
        pair = store[key]
        books = [pair.linguistic[: 2 * pair.groups], pair.semantic[: 3 * pair.groups]]
        linguistic, semantic = (torch.tensor([codes]) for codes in books)
        velocity = flow.field(linguistic, semantic, guidance=guidance)
        start = torch.randn(1, 160, 6 * pair.groups, generator=chance)
        with torch.no_grad():
            found.append(Case(velocity, start, unpack(follow(velocity, start, EXACT))))
    return found


class Table:
    """Strides and weights to be learnt, at first those of Adams-Bashforth on equal strides."""

    def __init__(self, steps: int) -> None:
        self.raw = torch.zeros(steps, requires_grad=True)
        earlier = torch.zeros(steps, steps)
        for k in range(1, steps):
            earlier[k, k - 1] = -0.5 / steps
        self.earlier = earlier.requires_grad_()

    @property
    def strides(self) -> Tensor:
        """(K,), which sum to one."""
        return torch.softmax(self.raw, 0)

    def lead(self, case: Case) -> Tensor:
        """Where the table leads from the start of a case, (1, 160, P)."""
        strides, x, found = self.strides, case.start, []
        times = torch.cat([strides.new_zeros(1), strides.cumsum(0)])
        for k, stride in enumerate(strides):
            found.append(case.velocity(x, times[k : k + 1]))
            before = self.earlier[k, :k]
            weights = [*before, stride - before.sum()]
            x = x + sum(weight * v for weight, v in zip(weights, found, strict=True))
        return x


def fit(table: Table, learnt: list[Case], *, rounds: int, seed: int) -> None:
    """Move the table towards the ends of some cases."""
    groups = [{"params": [table.raw], "lr": 0.04}, {"params": [table.earlier], "lr": 0.015}]
    adam = torch.optim.Adam(groups)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, rounds)
    chance = torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        some = torch.randint(len(learnt), (BATCH,), generator=chance).tolist()
        loss = torch.stack([learnt[i].off(table.lead(learnt[i])) for i in some]).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        slower.step()


@torch.no_grad()
def mean_off(some: list[Case], lead: Callable[[Case], Tensor]) -> float:
    """How far off a way to go is on average."""
    return float(torch.stack([case.off(lead(case)) for case in some]).mean())


def main(argv: Sequence[str]) -> int:
    """The command line."""
    given = told("fit_solver", argv, ASKED)
    steps, count, rounds, seed = (int(given[key]) for key in ("steps", "clips", "rounds", "seed"))
    torch.set_num_threads(1)
    flow = FlowVocoder.load(given["flow"]).requires_grad_(False)
    every = cases(flow, TokenStore(given["tokens"]), count=count, seed=seed,
                  guidance=float(given["guidance"]))  # fmt: skip
    learnt, kept = [c for i, c in enumerate(every) if i % 4], every[::4]
    table, euler = Table(steps), named("euler", 10)
    fit(table, learnt, rounds=rounds, seed=seed)
    found = {
        "strides": [round(stride, 6) for stride in table.strides.tolist()],
        "earlier": [[round(w, 6) for w in row[:k]] for k, row in enumerate(table.earlier.tolist())],
        "off": mean_off(kept, table.lead),
        "off_at_first": mean_off(kept, Table(steps).lead),
        "off_of_ten_euler": mean_off(kept, lambda c: follow(c.velocity, c.start, euler)),
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UsageError as error:
        sys.exit(f"fit_solver: {error}")
