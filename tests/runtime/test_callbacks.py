"""Progress lines and the stop on a loss that is no number; saving is tested with whole runs."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aqaa.errors import UsageError
from aqaa.runtime.callbacks import ShowProgress, StopOnNonFinite


def trainer(step: int) -> Any:
    return SimpleNamespace(global_step=step, max_steps=200)


def end(callback: Any, step: int, loss: float) -> None:
    callback.on_train_batch_end(trainer(step), None, {"loss": torch.tensor(loss)}, None, step)


def test_a_line_now_and_then_says_rate_loss_and_remaining_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setenv("AQAA_PROGRESS", "lines")
    progress = ShowProgress(name="sft_1")
    progress.on_train_start(trainer(100), None)  # type: ignore[arg-type]
    for step, now in ((101, 1001.0), (120, 1016.0), (121, 1017.0)):
        clock[0] = now
        end(progress, step, 0.25)
    # A resumed run counts its rate from where it began.
    assert capsys.readouterr().out == "sft_1: 120/200 steps, 1.2/s, loss 0.250, 1:04 left\n"
    progress.teardown(trainer(121), None, "fit")  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_is_an_error_of_use(loss: float) -> None:
    end(StopOnNonFinite(), 1, 1.0)
    with pytest.raises(UsageError, match=f"the loss is {loss} at step 7: lower optim.lr"):
        end(StopOnNonFinite(), 7, loss)
