"""Progress lines."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aqaa.runtime.callbacks import ShowProgress


def trainer(step: int) -> Any:
    return SimpleNamespace(
        global_step=step, max_steps=200, is_global_zero=True, accumulate_grad_batches=4
    )


def end(callback: Any, step: int, loss: float, share: float | None) -> None:
    """As Lightning does, with the batch's part of the step that was taken."""
    batch = SimpleNamespace() if share is None else SimpleNamespace(share=share)
    part = loss * (1.0 if share is None else share) / 4
    callback.on_train_batch_end(trainer(step), None, {"loss": torch.tensor(part)}, batch, step)


@pytest.mark.parametrize("share", [None, 1.0, 0.2])
def test_a_line_now_and_then_says_rate_loss_and_remaining_time(
    share: float | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setenv("AQAA_PROGRESS", "lines")
    progress = ShowProgress(name="sft_1")
    progress.on_train_start(trainer(100), None)  # type: ignore[arg-type]
    for step, now in ((101, 1001.0), (120, 1016.0), (121, 1017.0)):
        clock[0] = now
        end(progress, step, 0.25, share)
    # A resumed run counts its rate from where it began.
    assert capsys.readouterr().out == "sft_1: 120/200 steps, 1.2/s, loss 0.250, 1:04 left\n"
    progress.teardown(trainer(121), None, "fit")  # type: ignore[arg-type]
