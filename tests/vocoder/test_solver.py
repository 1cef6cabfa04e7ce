"""Solvers against flows whose end is known, and against Euler's rule written out."""

import math

import pytest
import torch
from torch import Tensor

from aqaa.answer import DEMO
from aqaa.errors import UsageError
from aqaa.vocoder.flow import FlowVocoder
from aqaa.vocoder.solver import SOLVERS, Solver, follow, named


def curved(x: Tensor, time: Tensor) -> Tensor:
    """A field that bends in place and in time; from 1 at 0 it leads to exp(0.5) + sin(3) / 3."""
    return 0.5 * (x - torch.sin(3 * time) / 3) + torch.cos(3 * time)


def missed(name: str, steps: int) -> float:
    start = torch.ones(1, 1, 1, dtype=torch.double)
    return abs(float(follow(curved, start, named(name, steps))) - math.exp(0.5) - math.sin(3) / 3)


def test_euler_is_its_rule_on_the_cosine_grid() -> None:
    x, steps = torch.randn(2, 3, 4), 5
    wanted = x
    for k in range(steps):
        now, after = (1 - math.cos(math.pi / 2 * i / steps) for i in (k, k + 1))
        wanted = wanted + (after - now) * curved(wanted, torch.tensor([now]))
    torch.testing.assert_close(follow(curved, x, named("euler", steps)), wanted)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("adams", 2), ("midpoint", 2)])
def test_twice_the_calls_come_as_much_closer_as_the_order_says(name: str, order: int) -> None:
    coarse, fine = missed(name, 64), missed(name, 128)
    # Nearly 2 to the order: the longest stride, the first, shrinks a little slower than the rest.
    assert 1.75**order < coarse / fine < 2.2**order


@pytest.mark.parametrize(
    ("name", "steps"), [(n, s) for n in SOLVERS for s in (2, 4) if (n, s) != ("fitted", 2)]
)
def test_a_straight_flow_is_followed_exactly(name: str, steps: int) -> None:
    solver, speed = named(name, steps), torch.randn(2, 3, 4)
    assert len(solver.times) == steps and solver.times[0] == 0
    asked: list[float] = []

    def straight(x: Tensor, time: Tensor) -> Tensor:
        asked.append(float(time))
        return speed

    end = follow(straight, torch.zeros_like(speed), solver)
    torch.testing.assert_close(end, speed)
    assert asked == pytest.approx(solver.times)


def test_a_table_may_use_every_velocity_found() -> None:
    solver = Solver((0.0, 0.5), ((0.5,), (-0.5, 1.0)))
    assert solver == named("midpoint", 2)
    found = follow(curved, torch.ones(1, 1, 1), solver)
    half = 1 + 0.5 * (0.5 * 1 + 1)
    wanted = 1 + 0.5 * (half - math.sin(1.5) / 3) + math.cos(1.5)
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_unknown_names_and_no_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="no solver is called heun: there are euler, adams"):
        named("heun", 4)
    with pytest.raises(UsageError, match=r"steps=0: a flow takes at least one"):
        named("adams", 0)
    with pytest.raises(UsageError, match=r"steps=3: the midpoint solver calls twice a stride"):
        named("midpoint", 3)
    with pytest.raises(UsageError, match=r"steps=8: the fitted solver takes 4"):
        named("fitted", 8)


def test_four_fitted_calls_come_nearer_to_a_guided_flow_than_ten_of_euler() -> None:
    """On the bundled flow, which is another training than the one they were fitted to."""
    flow = FlowVocoder.load(DEMO / "vocoder/flow")
    generator, off = torch.Generator().manual_seed(0), {}
    for _ in range(2):
        linguistic = torch.randint(1024, (1, 8), generator=generator)
        semantic = torch.randint(4096, (1, 12), generator=generator)
        noise = torch.randn(1, 160, 24, generator=generator)
        for guidance in (0.0, 0.7):
            told = {"noise": noise, "guidance": guidance}
            exact = flow.sample(linguistic, semantic, steps=60, solver="midpoint", **told)  # type: ignore[arg-type]
            for name, steps in (("fitted", 4), ("euler", 10), ("adams", 4), ("midpoint", 4)):
                mel = flow.sample(linguistic, semantic, steps=steps, solver=name, **told)  # type: ignore[arg-type]
                far = float((mel - exact).abs().mean())
                off[name, guidance] = off.get((name, guidance), 0.0) + far
    for guidance in (0.0, 0.7):
        assert off["fitted", guidance] < 0.9 * off["euler", guidance]
        assert off["fitted", guidance] < min(off["adams", guidance], off["midpoint", guidance])
