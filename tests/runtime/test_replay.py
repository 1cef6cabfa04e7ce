"""A replayed step has the very batches the training saw, and opens what a run left of it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from aqaa.cli import main
from aqaa.data.corpus import Corpus
from aqaa.errors import UsageError
from aqaa.runtime import replay as module
from aqaa.runtime.dumps import Trouble, write_dump
from aqaa.runtime.replay import Turn, replay, turns
from aqaa.runtime.starts import Start, read_starts
from aqaa.stages.dpo import Dpo
from aqaa.stages.language import LanguageModel
from aqaa.storage import load_tensors, read_json
from tests.conftest import STEPS, Chain
from tests.runs import train

PACKED = ("data.row_tokens=1024", "data.rows=2", "trainer.accumulate_grad_batches=2")


def watch(monkeypatch: pytest.MonkeyPatch, stage: type) -> list[Any]:
    """Every batch that a training step of a stage is given, from now on."""
    seen: list[Any] = []
    step = stage.training_step

    def watched(self: Any, batch: Any, batch_idx: int) -> Any:
        seen.append(batch)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(stage, "training_step", watched)
    return seen


CASES = [("sft_1", LanguageModel, (), 1), ("sft_1", LanguageModel, PACKED, 2), ("dpo", Dpo, (), 1)]


@pytest.mark.parametrize(("stage", "kind", "more", "each"), CASES, ids=["sft", "packed", "dpo"])
def test_the_batches_are_those_of_the_training(
    stage: str, kind: type, more: tuple[str, ...], each: int, chain: Chain, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    seen = watch(monkeypatch, kind)
    run = train(chain.words(stage, tmp_path, "run.steps=3", "trainer.limit_val_batches=0", *more))
    assert len(seen) == 3 * each
    out = tmp_path / "replay"
    assert main(["replay", f"run={run}", "step=2", f"out={out}"]) == 0
    said = capsys.readouterr().out
    for batch, number in zip(seen[2 * each :], range(2 * each, 3 * each), strict=True):
        found = load_tensors(out / f"batch_{number:08d}.safetensors")
        wanted = {k: v for k, v in batch._asdict().items() if isinstance(v, torch.Tensor)}
        assert found.keys() == wanted.keys()
        assert all(found[name].equal(wanted[name]) for name in found)
        about = read_json(out / f"batch_{number:08d}.json")
        assert len(about["rows"]) == len(batch.input_ids)
        assert about["share"] == pytest.approx(getattr(batch, "share", 1.0), rel=1e-12)
        assert (about["share"] == 1) is (each == 1)
        assert f"batch {number} (rank 0" in said


def test_documents_are_named_with_their_sound(
    chain: Chain, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    replay(source=str(chain / "sft_1"), step=1, out=str(tmp_path / "out"))
    said = capsys.readouterr().out
    corpus = {row["id"]: row for row in Corpus(chain / "corpus").rows("train")}
    rows = read_json(tmp_path / "out" / "batch_00000001.json")["rows"]
    for ((document),) in rows:
        parts = corpus[document["id"]]["messages"][0]["content"]
        path = chain / "corpus" / parts[0]["path"]
        assert path.is_file() and document["sound"][0].startswith(f"{path} {parts[0]['start']}..")
        assert document["task"] in said and document["id"] in said


def test_turns_are_numbered_as_the_data_module_does() -> None:
    trainer = {"accumulate_grad_batches": 2, "devices": 2, "num_nodes": 1}
    settings = {"trainer": trainer, "run": {"repeat_batches": None}}
    wanted = [Turn(12, 0, 0), Turn(13, 1, 0), Turn(14, 0, 1), Turn(15, 1, 1)]
    assert turns(settings, 3) == wanted
    assert [t.number for t in turns(settings, 3, ranks=1)] == [6, 7]
    settings["run"]["repeat_batches"] = 5
    assert [t.number for t in turns(settings, 3)] == [2, 3, 4, 0]


def test_ranks_are_those_of_the_start_that_took_the_step() -> None:
    trainer = {"accumulate_grad_batches": 2, "devices": 2, "num_nodes": 1}
    settings = {"trainer": trainer, "run": {"repeat_batches": None}}
    starts = [Start(0, 4, 1), Start(3, 1, 4), Start(5, 2, 2)]
    assert turns(settings, 2, starts=starts) == [Turn(8 + rank, rank, 0) for rank in range(4)]
    assert turns(settings, 4, starts=starts) == [Turn(16 + micro, 0, micro) for micro in range(4)]
    assert turns(settings, 5, starts=starts) == turns(settings, 5)
    assert [t.rank for t in turns(settings, 2, 2, starts)] == [0, 1, 0, 1]
    trainer["devices"] = "auto"  # type: ignore[assignment]
    assert len(turns(settings, 2, starts=starts)) == 4
    with pytest.raises(UsageError, match="devices=auto does not tell how many ranks"):
        turns(settings, 2)


def test_a_step_that_is_none_of_the_run_is_refused(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "sft_1"
    shutil.copytree(chain / "sft_1", run)
    assert read_starts(run) == [Start(0, 1, 1)]
    for step in (STEPS, 1_000_000):
        with pytest.raises(UsageError, match=f"step={step} is none of .*, which took steps 0 to"):
            replay(source=str(run), step=step)
    (run / "lineage.json").unlink()  # as if it had been cut
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UsageError, match=f"step={STEPS} is none of .*, which takes steps 0 to"):
        replay(source=str(run), step=STEPS)
    (run / "checkpoints/step_00000002").mkdir(parents=True)
    capsys.readouterr()
    replay(source=str(run), step=1)
    assert "was cut" not in capsys.readouterr().out
    replay(source=str(run), step=2)
    assert "was cut: it is known to have taken 2 steps\n" in capsys.readouterr().out


def test_a_dump_is_opened_and_compared(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(chain.words("sft_2", tmp_path, "run.steps=2", "trainer.limit_val_batches=0"))
    source = module.source_of(run, module.settings_of(run))
    batch = source.batch(1)
    write_dump(run, Trouble("the loss is nan", 1, [1], 0, 1), [batch])
    wrong = batch._replace(targets=batch.targets + 1)
    write_dump(run, Trouble("the loss is nan", 1, [1, 7], 1, 2), [wrong, source.batch(0)])
    write_dump(run, Trouble("the loss is nan", 1, [1], 2, 3), [batch._replace(share=1.5)])
    replay(source=str(run), step=1)
    said = capsys.readouterr().out
    assert "rank_00000.json: the loss is nan; batches 1\n" in said
    assert "  batch 1 equals the one made again" in said
    assert "  batch 1 differs in targets\n" in said
    assert "  batch 1 differs in share\n" in said
    assert "  batch 7 is not one of this step: say ranks=2" in said


def test_errors_of_use(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run folder: it holds no config.yaml"):
        replay(source=str(tmp_path), step=0)
    (tmp_path / "config.yaml").write_text("data: [")
    with pytest.raises(UsageError, match="config.yaml is damaged: "):
        replay(source=str(tmp_path), step=0)
    for data in ("bogus: 1", f"corpus: {chain}/corpus, tokens: {chain}/tokens, tasks: {{}}"):
        (tmp_path / "config.yaml").write_text(
            f"data: {{_target_: aqaa.data.dialogues.DialogueBatches, {data}}}\n"
            "stage: {}\ntrainer: {}\nrun: {steps: 1}\n"
        )
        with pytest.raises(UsageError, match="does not hold the settings of this version: "):
            replay(source=str(tmp_path), step=0)
    with pytest.raises(UsageError, match="step=-1 must be 0 or more"):
        replay(source=str(chain / "sft_1"), step=-1)
    with pytest.raises(UsageError, match="replay knows pretrain, sft and dpo"):
        replay(source=str(chain / "vocoder_flow"), step=0)


def test_settings_of_a_run_folder_build_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "data: {_target_: os.system, command: 'false'}\nstage: {}\ntrainer: {}\nrun: {steps: 1}\n"
    )
    with pytest.raises(UsageError, match="trains from os.system: replay knows"):
        replay(source=str(tmp_path), step=0)
