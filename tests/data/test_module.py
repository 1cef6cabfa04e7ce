"""The data module: where a resume begins, which batches are repeated, what a batch counts for."""

from itertools import islice
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from aqaa.data.module import DataModule, _Steps, shares
from aqaa.errors import UsageError


class Source:
    def batch(self, step: int) -> int:
        return step

    def validation(self) -> list[int]:
        return [7, 8]


def first(
    module: DataModule, count: int, step: int | None = None, rank: int = 0, ranks: int = 1
) -> list[Any]:
    trainer = SimpleNamespace(global_step=step, global_rank=rank, world_size=ranks)
    module.trainer = None if step is None else trainer  # type: ignore[assignment]
    return list(islice(module.train_dataloader(), count))


def test_batches_begin_where_the_optimizer_stands() -> None:
    assert first(DataModule(Source()), 3) == [0, 1, 2]
    assert first(DataModule(Source()), 3, step=5) == [5, 6, 7]
    assert first(DataModule(Source(), accumulate=4), 3, step=5) == [20, 21, 22]
    assert list(DataModule(Source()).val_dataloader()) == [7, 8]


def test_ranks_take_turns_and_share_every_batch_among_them() -> None:
    ranks = [first(DataModule(Source(), accumulate=2), 4, step=3, rank=r, ranks=2) for r in (0, 1)]
    assert ranks == [[12, 14, 16, 18], [13, 15, 17, 19]]


@pytest.mark.parametrize(
    ("ranks", "wanted"), [(1, [[7, 8]]), (2, [[7], [8]]), (3, [[7], [8], [7]])]
)
def test_a_sharded_stage_shares_the_check_and_counts_every_batch_once(
    ranks: int, wanted: list[list[int]]
) -> None:
    found, counted = [], []
    for rank in range(ranks):
        module = DataModule(Source())
        stage = SimpleNamespace(sharded=True)
        module.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, world_size=ranks, lightning_module=stage
        )
        found.append(list(module.val_dataloader()))
        counted += [b for i, b in enumerate(found[-1]) if not module.is_extra(i)]
        stage.sharded = False  # a small network: all of it on every rank
        assert list(module.val_dataloader()) == [7, 8] and not module.is_extra(1)
    assert found == wanted and sorted(counted) == [7, 8]


def test_the_first_batches_may_be_repeated() -> None:
    assert first(DataModule(Source(), repeat=2), 5) == [0, 1, 0, 1, 0]
    assert first(DataModule(Source(), repeat=3), 4, step=4) == [1, 2, 0, 1]
    with pytest.raises(UsageError, match="0 batches cannot be repeated"):
        DataModule(Source(), repeat=0)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_change_no_order(workers: int) -> None:
    found = [first(DataModule(Source(), workers=workers), 7, step=2, rank=1, ranks=2)]
    assert found == [[5, 7, 9, 11, 13, 15, 17]]


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (2, 1), (2, 3), (3, 2), (4, 4)])
@pytest.mark.parametrize("step", [0, 5])
def test_ranks_together_take_what_one_alone_would(ranks: int, accumulate: int, step: int) -> None:
    module = DataModule(Source(), accumulate=accumulate)
    mine = [first(module, 2 * accumulate, step, rank, ranks) for rank in range(ranks)]
    for s in range(2):
        for a in range(accumulate):
            for rank in range(ranks):
                wanted = (step + s) * accumulate * ranks + a * ranks + rank
                assert mine[rank][s * accumulate + a] == wanted
    turns = [batch for turn in zip(*mine, strict=True) for batch in turn]
    alone = DataModule(Source(), accumulate=accumulate * ranks)
    assert turns == first(alone, 2 * accumulate * ranks, step)


class Weighed(NamedTuple):
    number: int
    share: float = 1.0


class WeighedSource(Source):
    def batch(self, step: int) -> Any:
        return Weighed(step)


def weight(batch: Weighed) -> float:
    return 0.5 * (1 + 7 * (batch.number % 3))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [0, 5])
def test_a_batch_comes_with_its_share_of_the_step(workers: int, step: int) -> None:
    module = DataModule(WeighedSource(), accumulate=4, workers=workers)
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_step=step,
        global_rank=0,
        world_size=1,
        lightning_module=SimpleNamespace(weight_of=weight),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    found = list(islice(module.train_dataloader(), 8))
    assert [batch.number for batch in found] == [*range(4 * step, 4 * step + 8)]
    for taken in (found[:4], found[4:]):
        whole = sum(weight(batch) for batch in taken)
        assert [b.share for b in taken] == pytest.approx([4 * weight(b) / whole for b in taken])


def test_a_step_of_one_batch_and_a_stage_without_weights_are_left_alone() -> None:
    for accumulate, stage in ((1, SimpleNamespace(weight_of=weight)), (4, SimpleNamespace())):
        module = DataModule(WeighedSource(), accumulate=accumulate)
        module.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_step=0, global_rank=0, world_size=1, lightning_module=stage
        )
        assert [b.share for b in islice(module.train_dataloader(), 8)] == [1.0] * 8


def test_a_shorter_last_step_is_a_mean_over_what_it_has() -> None:
    losses = {number: 10.0 + number for number in range(6)}
    found = _Steps(
        [Weighed(number) for number in losses],
        accumulate=4,
        weight_of=weight,
        device=torch.device("cpu"),
    )
    first, second = (list(islice(batches, 4)) for batches in [iter(found)] * 2)
    assert len(second) == 2
    for taken in (first, second):
        step = sum(losses[b.number] * b.share / 4 for b in taken)  # Lightning divides by four
        weights = [weight(b) for b in taken]
        mean = sum(losses[b.number] * w for b, w in zip(taken, weights, strict=True)) / sum(weights)
        assert step == pytest.approx(mean)


def test_a_step_that_weighs_nothing_has_no_shares() -> None:
    assert shares([0.0, 0.0], 0.0, 2) == [1.0, 1.0]
    assert shares([0.0, 2.0], 2.0, 2) == [0.0, 2.0]


def test_no_negative_workers() -> None:
    with pytest.raises(UsageError, match="loader_workers=-1 must be 0 or more"):
        DataModule(Source(), workers=-1)
