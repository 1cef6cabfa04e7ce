"""Resume = uninterrupted, bit for bit, for every stage and wherever the run was cut."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import STAGES, STEPS, Chain
from tests.runs import At, assert_same_run, crash, interrupt, rows, train


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_the_unbroken_one(
    stage: str, chain: Chain, tmp_path: Path, after_step: dict[str, Any]
) -> None:
    words = chain.words(stage, tmp_path)
    before = signal.getsignal(signal.SIGINT)
    after_step["do"] = At(3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(words)
    run = tmp_path / stage
    assert signal.getsignal(signal.SIGINT) == before
    assert (run / "checkpoints/step_00000003").is_dir() and not (run / "lineage.json").exists()
    assert not (run / "model").exists()
    cut = rows(run)
    assert [int(row["step"]) for row in cut] == [0, 1, 2]
    train(words)
    assert_same_run(run, chain / stage)
    assert [int(row["step"]) for row in rows(run)] == [*range(STEPS)]


@pytest.mark.parametrize("stage", ["tokenizer_semantic", "sft_2", "vocoder_flow"])
@pytest.mark.parametrize(("step", "act"), [(4, interrupt), (3, crash), (1, interrupt)])
def test_it_is_so_wherever_it_was_cut(
    stage: str, step: int, act: Any, chain: Chain, tmp_path: Path, after_step: dict[str, Any]
) -> None:
    # Step 4: where the periodic check is due. A crash: the state saved before is taken up.
    words = chain.words(stage, tmp_path, "run.save_every_s=0")
    after_step["do"] = At(step, act)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        train(words)
    train(words)
    assert_same_run(tmp_path / stage, chain / stage)


def test_it_may_be_cut_again_and_again(
    chain: Chain, tmp_path: Path, after_step: dict[str, Any]
) -> None:
    words = chain.words("vocoder_flow", tmp_path)
    for step in (1, 2, 4, 5):
        after_step["do"] = At(step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(words)
    train(words)
    assert_same_run(tmp_path / "vocoder_flow", chain / "vocoder_flow")


def test_with_accumulation_too(chain: Chain, tmp_path: Path, after_step: dict[str, Any]) -> None:
    more = ("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4")
    whole = train(chain.words("sft_2", tmp_path / "a", *more))
    assert len(rows(whole)) == STEPS
    words = chain.words("sft_2", tmp_path / "b", *more)
    after_step["do"] = At(3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(words)
    assert_same_run(train(words), whole)


def test_a_stop_in_the_last_step_leaves_a_finished_run(
    chain: Chain, tmp_path: Path, after_step: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = chain.words("vocoder_waveform", tmp_path)
    after_step["do"] = At(STEPS, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(words)
    capsys.readouterr()
    run = train(words)
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert_same_run(run, chain / "vocoder_waveform")


def test_a_second_ctrl_c_does_not_wait_for_the_step(
    chain: Chain, tmp_path: Path, after_step: dict[str, Any]
) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    before = signal.getsignal(signal.SIGINT)
    after_step["do"] = At(2, twice)
    with pytest.raises(KeyboardInterrupt):
        train(chain.words("vocoder_waveform", tmp_path))
    assert list((tmp_path / "vocoder_waveform/checkpoints").iterdir()) == []
    signal.signal(signal.SIGINT, before)


def test_the_command_line_ends_with_130_when_stopped(
    chain: Chain,
    tmp_path: Path,
    after_step: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from aqaa.cli import main

    for name in ("PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")
    words = chain.words("vocoder_waveform", tmp_path)
    after_step["do"] = At(2, interrupt)
    assert main(words) == 130
    streams = capsys.readouterr()
    assert "the same command goes on" in streams.err and "Traceback" not in streams.err
    assert main(words) == 0
    assert_same_run(tmp_path / "vocoder_waveform", chain / "vocoder_waveform")


def test_lightning_keeps_its_advice_to_itself(
    chain: Chain, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(chain.words("vocoder_waveform", tmp_path))
    streams = capfd.readouterr()
    for noise in ("GPU available", "Tip", "Trainer.fit", "litlogger", "model summary"):
        assert noise not in streams.out + streams.err
