"""Progress lines."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aqaa.runtime.callbacks import ShowProgress


def trainer(step: int) -> Any:
    return SimpleNamespace(global_step=step, max_steps=200, is_global_zero=True)


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
