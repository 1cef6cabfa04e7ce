"""A planted NaN and a planted hang are named with their batches, which can be opened later."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aqaa.errors import NotANumber, UsageError
from aqaa.runtime.dumps import read_dump
from aqaa.runtime.guard import HANG, Watchdog
from aqaa.storage import read_json, write_json
from tests.conftest import ROOT
from tests.runtime.toy import Pair, Source, Toy, fit, guarded


def no_number(loss: Tensor, batch: Pair) -> Tensor:
    return loss * float("nan") if batch.ids[0] == 5 else loss


def no_number_early(loss: Tensor, batch: Pair) -> Tensor:
    """In the first batch of a step: it is looked at with the last, and before the step."""
    return loss * float("nan") if batch.ids[0] == 4 else loss


def no_gradient(loss: Tensor, batch: Pair) -> Tensor:
    """A finite loss whose gradient is 0 times infinity."""
    return loss + (loss * 0).sqrt() if batch.ids[0] == 4 else loss


@pytest.mark.parametrize(
    ("plant", "why"),
    [
        (no_number, "the loss is nan"),
        (no_number_early, "the loss is nan"),
        (no_gradient, "the gradient's norm is nan"),
    ],
)
def test_what_is_no_number_stops_the_run_and_its_batches_are_saved(
    plant: object, why: str, tmp_path: Path
) -> None:
    toy = Toy(plant)  # type: ignore[arg-type]
    sentence = f"{why} at step 2 in batch 4, 5, saved in .*step_00000002"
    with pytest.raises(NotANumber, match=sentence) as caught:
        fit(toy, guarded(tmp_path), accumulate=2)
    assert "\n" not in str(caught.value)
    assert len(toy.losses) == 6 and torch.isfinite(torch.tensor(toy.losses[:4])).all()
    # The step was not taken: the weights are still numbers.
    assert all(torch.isfinite(p).all() for p in toy.parameters())
    found, batches = read_dump(tmp_path / "dumps/step_00000002")
    assert (found.why, found.step, found.batches) == (why, 2, [4, 5])
    for number, batch in zip(found.batches, batches, strict=True):
        made = Source().batch(number)
        assert batch["x"].equal(made.x)
        assert (batch["task"], batch["ids"]) == (made.task, made.ids)


def test_a_hang_ends_the_rank_and_says_where(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.runtime.toy", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == HANG, done.stderr
    assert "rank 0 of 1 hangs at step 2 in batch 4, 5: nothing moved for 1 s" in done.stderr
    assert "in stop_moving" in done.stderr and "Current thread" in done.stderr
    found, batches = read_dump(tmp_path / "dumps/step_00000002")
    assert (found.step, found.batches, batches) == (2, [4, 5], [])


def test_a_hang_around_the_steps_ends_the_rank_too(tmp_path: Path) -> None:
    """In Python's own time, and where C code lets no Python run."""
    told = {"sleep": "nothing moved for 0.2 s", "hold": "C code kept Python from running"}
    for name, why in told.items():
        command = [sys.executable, "-m", "tests.runtime.toy", str(tmp_path), name]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, timeout=120,
            env={**os.environ, "RANK": "5"},
        )  # fmt: skip
        assert done.returncode == HANG, done.stderr
        assert f"rank 5 hangs while loading: {why}" in done.stderr
        assert f"in {name}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_over_is_watched_no_more(tmp_path: Path) -> None:
    import time

    watchdog = Watchdog(run=tmp_path, after_s=None, outside_s=0.5)
    with pytest.raises(ValueError), watchdog.outside("loading", several=False):
        raise ValueError
    with watchdog.outside("exporting", several=False):
        pass
    time.sleep(1.0)


def test_who_moves_is_left_alone(tmp_path: Path) -> None:
    import time

    def slow(loss: Tensor, batch: Pair) -> Tensor:
        time.sleep(0.3)
        return loss

    fit(Toy(slow), guarded(tmp_path, after_s=1.5), steps=8)  # longer in all, never in one step
    assert list(tmp_path.iterdir()) == []


def test_a_long_check_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    class Checked(Toy):
        def validation_step(self, batch: Pair, batch_idx: int) -> None:
            time.sleep(0.6)

    monkeypatch.setattr(Source, "validation", lambda self: [self.batch(i) for i in range(6)])
    more = {"val_check_interval": 2, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    fit(Checked(), guarded(tmp_path, after_s=2.5), steps=2, **more)
    assert list(tmp_path.iterdir()) == []


def test_a_watchdog_without_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run.hang_after_s=0"):
        Watchdog(run=tmp_path, after_s=0)
    with pytest.raises(UsageError, match="run.hang_outside_s=-1"):
        Watchdog(run=tmp_path, after_s=None, outside_s=-1)


def test_a_damaged_dump_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rank_00000.json does not exist"):
        read_dump(tmp_path)
    write_json(tmp_path / "rank_00000.json", {"tree": [], "step": 1})
    with pytest.raises(UsageError, match="is not a dump of this version"):
        read_dump(tmp_path)
    assert read_json(tmp_path / "rank_00000.json")["step"] == 1
