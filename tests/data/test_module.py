"""The data module: where a resume begins, which batches are repeated."""

from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from aqaa.data.module import DataModule
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


def test_no_negative_workers() -> None:
    with pytest.raises(UsageError, match="loader_workers=-1 must be 0 or more"):
        DataModule(Source(), workers=-1)
