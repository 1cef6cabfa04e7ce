"""How every training stage runs: kept when finished, refused when it cannot be, mended when cut."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from aqaa.errors import UsageError
from aqaa.evaluation.agreement import read_table
from aqaa.storage import (
    load_tensors,
    read_json,
    verify_manifest,
    write_json,
    write_manifest,
)
from tests.conftest import ROOT, STEPS, Chain
from tests.runs import WEIGHTS, At, assert_same_run, interrupt, rows, train

# ---- finished runs


@pytest.fixture(scope="module")
def finished(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one finished run, to be copied and spoilt."""
    root = tmp_path_factory.mktemp("finished")
    shutil.copytree(chain / "vocoder_waveform", root / "vocoder_waveform")
    return root


@pytest.fixture
def spoil(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "root")
    return tmp_path / "root"


def test_a_finished_run_is_kept_wherever_it_lies(
    chain: Chain, spoil: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from aqaa.runtime import run

    monkeypatch.setattr(run, "_fit", None)  # nothing may be trained
    for more in ((), ("run.save_every_s=7", "log=csv", "run.repeat_batches=null")):
        out = train(chain.words("vocoder_waveform", spoil, *more))
        assert capsys.readouterr().out == f"{out} is finished: nothing to do\n"


def test_a_run_with_an_adapter_leaves_both_and_is_kept(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = chain.words("sft_2", tmp_path, "adapter=lora")
    out = train(words)
    before, after = (load_tensors(f / "model" / WEIGHTS) for f in (chain / "sft_1", out))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert before.keys() == after.keys() and moved == {n for n in before if "_proj" in n}
    assert (out / "adapter/adapter_model.safetensors").is_file()
    parent = read_json(out / "lineage.json")["parents"]["model"]
    assert parent["path"] == f"{chain / 'sft_1'}/model"
    assert read_json(out / "lineage.json")["parameters"] < sum(t.numel() for t in after.values())
    capsys.readouterr()
    assert train(words) == out
    assert "is finished: nothing to do" in capsys.readouterr().out


def test_two_processes_started_by_one_command_leave_what_one_does(
    chain: Chain, tmp_path: Path
) -> None:
    hears = ["answers=heard", "answers.prompts=1", "answers.every=3"]
    voice = {part: chain / f"vocoder_{part}" / "model" for part in ("flow", "waveform")}
    hears += [f"answers.{part}={path}" for part, path in voice.items()]
    words = (*chain.words("sft_2", tmp_path / "two", "trainer=gloo", *hears), "optim.algorithm=sgd")
    alone = ("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4")
    one = train([*chain.words("sft_2", tmp_path / "one", *alone, *hears), words[-1]])
    done = subprocess.run(
        [sys.executable, "-m", "aqaa", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    two = tmp_path / "two/sft_2"
    assert sorted(p.name for p in two.iterdir()) == sorted(p.name for p in one.iterdir())
    verify_manifest(two / "model")
    mine, other = load_tensors(one / "model" / WEIGHTS), load_tensors(two / "model" / WEIGHTS)
    assert max(float((mine[name] - other[name]).abs().max()) for name in mine) < 1e-5
    for a, b in zip(rows(one), rows(two), strict=True):  # figures too are of both processes
        assert a.keys() == b.keys() and "train/loss" in a and "validation/loss" in a
        for name in a:
            assert float(a[name] or 0) == pytest.approx(float(b[name] or 0), abs=1e-4), name
    # Answers of shards, gathered into a copy, are those of the whole.
    heard = [read_table(run) for run in (one, two)]
    assert len(heard[0]) == 1 and heard[0] == heard[1]


def test_other_settings_are_refused_unless_the_run_may_be_lost(chain: Chain, spoil: Path) -> None:
    out = spoil / "vocoder_waveform"
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    words = chain.words("vocoder_waveform", spoil, "run.seed=5")
    with pytest.raises(UsageError, match="holds a run with other settings or parents") as caught:
        train(words)
    assert "\n" not in str(caught.value) and "run.overwrite=true" in str(caught.value)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    train([*words, "run.overwrite=true"])
    assert rows(out) != rows(chain / "vocoder_waveform")
    assert len(rows(out)) == STEPS


def test_where_it_runs_may_change_but_not_what_a_step_takes() -> None:
    from aqaa.runtime.compose import compose
    from aqaa.runtime.run import _settings

    def settings(trainer: str, devices: int, nodes: int, batches: int, check: int) -> Any:
        words = [f"trainer={trainer}", f"trainer.devices={devices}", f"trainer.num_nodes={nodes}"]
        words += [f"trainer.accumulate_grad_batches={batches}"]
        words += [f"trainer.val_check_interval={check}", "preset=walkthrough/sft_1"]
        return _settings(compose("sft", words))

    one = settings("cpu", 1, 1, 8, 40)
    assert settings("gloo", 2, 1, 4, 20) == one
    assert settings("gloo", 2, 2, 2, 10) == one
    assert settings("gloo", 2, 1, 8, 20) != one  # twice the batches a step
    assert settings("cpu", 1, 1, 8, 20) != one


def test_a_folder_of_something_else_is_not_taken(chain: Chain, tmp_path: Path) -> None:
    for name in ("corpus", "merge"):  # one has a manifest, one a record
        shutil.copytree(chain / name, tmp_path / name, ignore=shutil.ignore_patterns("*.wav"))
        before = {p: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        words = chain.words("vocoder_waveform", tmp_path, f"run.name={name}", "run.overwrite=true")
        with pytest.raises(UsageError, match=f"{name} holds something else than a training run"):
            train(words)
        found = {p: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        assert found == before


@pytest.mark.parametrize("lost", ["model/model.safetensors", "model/MANIFEST.sha256", "model"])
def test_a_run_cut_in_half_is_made_again(
    lost: str, chain: Chain, spoil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spoil / "vocoder_waveform" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    out = train(chain.words("vocoder_waveform", spoil))
    assert "making it again" in capsys.readouterr().out
    assert_same_run(out, chain / "vocoder_waveform")


def test_a_damaged_model_does_not_stand_in_the_way(
    chain: Chain, spoil: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aqaa.runtime import run

    def fit(_: object, out: Path) -> None:
        assert not (out / "model").exists()  # else its export were refused after the training
        raise KeyboardInterrupt

    (spoil / "vocoder_waveform" / "model" / "MANIFEST.sha256").unlink()
    monkeypatch.setattr(run, "_fit", fit)
    with pytest.raises(KeyboardInterrupt):
        train(chain.words("vocoder_waveform", spoil))


def test_a_run_without_its_record_is_made_again(chain: Chain, spoil: Path) -> None:
    (spoil / "vocoder_waveform" / "lineage.json").unlink()
    assert_same_run(
        train(chain.words("vocoder_waveform", spoil)), chain / "vocoder_waveform"
    )


@pytest.mark.parametrize("name", ["lineage.json", "fingerprint.json"])
def test_half_a_record_is_one_sentence(name: str, chain: Chain, spoil: Path) -> None:
    path = spoil / "vocoder_waveform" / name
    path.write_text(path.read_text()[: len(path.read_text()) // 2])
    if name == "fingerprint.json":
        (path.parent / "lineage.json").unlink()
    with pytest.raises(UsageError, match=f"{name} is not valid JSON") as caught:
        train(chain.words("vocoder_waveform", spoil))
    assert "\n" not in str(caught.value)


def test_a_damaged_state_is_named_and_the_one_before_taken(
    chain: Chain, tmp_path: Path, after_step: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = chain.words("vocoder_waveform", tmp_path)
    for step in (2, 4):
        after_step["do"] = At(step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(words)
    states = tmp_path / "vocoder_waveform/checkpoints"
    last = states / "step_00000004/state.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    shutil.copytree(states, tmp_path / "states")
    assert_same_run(train(words), chain / "vocoder_waveform")
    said = capsys.readouterr().err
    assert f"{last} is damaged" in said and "taking the state before it" in said
    assert (states / "damaged_step_00000004").is_dir()
    # None left: one sentence, and what to do helps.
    (tmp_path / "vocoder_waveform/lineage.json").unlink()
    shutil.rmtree(states)
    shutil.copytree(tmp_path / "states", states)
    (states / "step_00000002/state.json").write_text("{}")
    with pytest.raises(UsageError, match="every saved state in .*: remove .*checkpoints") as caught:
        train(words)
    assert "\n" not in str(caught.value)
    shutil.rmtree(states)
    assert_same_run(train(words), chain / "vocoder_waveform")


# ---- what a run is made from


def copied(chain: Chain, name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chain / name, tmp_path / name))


@pytest.mark.parametrize(
    ("stage", "key", "parent", "file"),
    [
        ("sft_1", "model", "pretrain", "model/model.safetensors"),
        ("sft_1", "tokens", "tokens", "linguistic.bin"),
        ("vocoder_flow", "corpus", "corpus", "answers.jsonl"),
        ("dpo", "pairs", "pairs", "pairs.jsonl"),
        ("pretrain", "model", "init", "tokenizer.json"),
    ],
)
def test_a_damaged_parent_is_refused(
    stage: str, key: str, parent: str, file: str, chain: Chain, tmp_path: Path
) -> None:
    copy = copied(chain, parent, tmp_path)
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(data)
    path = copy / "model" if file.startswith("model/") else copy
    with pytest.raises(UsageError, match="is damaged: its SHA-256 differs from MANIFEST") as caught:
        train(chain.words(stage, tmp_path / "runs", **{key: path}))
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("sft_1", "stage.model"),
        ("sft_1", "data.corpus"),
        ("vocoder_flow", "data.tokens"),
        ("dpo", "data.pairs"),
        ("dpo", "stage.model"),
    ],
)
def test_what_is_trained_from_is_what_is_recorded(
    stage: str, key: str, chain: Chain, tmp_path: Path
) -> None:
    name = key.partition(".")[2]
    with pytest.raises(UsageError, match=f"{key}=elsewhere is not parents.{name}=") as caught:
        train(chain.words(stage, tmp_path / "runs", f"{key}=elsewhere"))
    assert f"set parents.{name}" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_missing_parent_is_refused(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere does not exist: run the stage that makes it"):
        train(chain.words("sft_2", tmp_path / "runs", model=tmp_path / "nowhere"))
    assert not (tmp_path / "runs").exists()


def test_parents_count_by_content_not_by_place(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(chain, "vocoder_waveform", tmp_path)
    moved = copied(chain, "corpus", tmp_path)
    train(chain.words("vocoder_waveform", tmp_path, corpus=moved))
    assert "is finished" in capsys.readouterr().out
    other = copied(chain, "tokens", tmp_path)
    with pytest.raises(UsageError, match="holds a run with other settings or parents"):
        train(chain.words("vocoder_waveform", tmp_path, tokens=other))


def other_tokenizers(chain: Chain, tmp_path: Path) -> Path:
    """A token store of the same corpus by another pair of tokenizers."""
    store = copied(chain, "tokens", tmp_path)
    meta = read_json(store / "meta.json")
    write_json(store / "meta.json", {**meta, "tokenizer_hash": "another"})
    write_manifest(store)
    return store


@pytest.mark.parametrize("stage", ["pretrain", "sft_1"])
def test_parents_of_another_tokenizer_are_refused(
    stage: str, chain: Chain, tmp_path: Path
) -> None:
    store = other_tokenizers(chain, tmp_path)
    with pytest.raises(UsageError, match="codes of two tokenizers are not interchange") as caught:
        train(chain.words(stage, tmp_path / "runs", tokens=store))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs" / stage / "lineage.json").exists()


def test_the_record_names_the_parents(chain: Chain) -> None:
    record = read_json(chain / "sft_2" / "lineage.json")
    assert (record["stage"], record["run"], record["steps"]) == ("sft", "sft_2", STEPS)
    assert set(record["parents"]) == {"corpus", "tokens", "model"}
    assert all(p["verified"] and len(p["hash"]) == 64 for p in record["parents"].values())
    tensors = load_tensors(chain / "sft_2" / "model" / WEIGHTS)
    assert record["parameters"] == sum(t.numel() for t in tensors.values())
    assert record["seconds"] > 0


# ---- what goes wrong in training


def test_a_loss_that_is_no_number_stops_the_run(chain: Chain, tmp_path: Path) -> None:
    words = chain.words("vocoder_flow", tmp_path, "optim.lr=1e30", "optim.warmup_steps=1")
    sentence = r"is (nan|inf) at step \d+ in batch \d+, saved in .*: lower optim.lr"
    with pytest.raises(UsageError, match=sentence):
        train([*words, "trainer.gradient_clip_val=null"])
    assert not (tmp_path / "vocoder_flow" / "lineage.json").exists()


def test_a_full_disk_keeps_the_state_saved_before(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_step: dict[str, Any]
) -> None:
    import errno

    from aqaa.runtime.tensor_file import HostCopy

    words = chain.words("vocoder_flow", tmp_path, "run.save_every_s=0")
    real = HostCopy.write

    def write(self: HostCopy, path: Path) -> str:
        digest = real(self, path)
        if "step_00000004" in str(path):
            path.write_bytes(path.read_bytes()[:1000])  # as much as there was room for
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return digest

    monkeypatch.setattr(HostCopy, "write", write)
    sentence = "step_00000004: No space left on device; make room and run the same command again"
    with pytest.raises(UsageError, match=sentence) as caught:
        train(words)
    assert "\n" not in str(caught.value)
    folder = tmp_path / "vocoder_flow" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step_00000002", "step_00000003"]
    monkeypatch.undo()
    assert_same_run(train(words), chain / "vocoder_flow")


def test_a_config_that_does_not_fit_is_refused_before_anything_is_made(
    chain: Chain, tmp_path: Path
) -> None:
    for more, sentence in (
        ("+stage.betta=1", "stage.betta does not fit: aqaa.stages.vocoder.Waveform takes"),
        ("stage._target_=os.system", "stage._target_ = os.system is refused"),
        ("vocoder.blocks=many", "vocoder.blocks = 'many' does not fit: it must be int"),
        ("trainer.strategy=deepspeed_stage_3", "for shards say trainer=zero3_nodes"),
        ("trainer.accumulate_grad_batches=0", "accumulate_grad_batches=0 must be a whole number"),
        ("trainer.accumulate_grad_batches=1.5", "accumulate_grad_batches=1.5 must be a whole"),
        ("trainer.log_every_n_steps=0", "log_every_n_steps=0 must be a whole number, 1 or more"),
        ("trainer.val_check_interval=0", "val_check_interval=0 must be a whole number, 1 or more"),
        ("trainer.num_nodes=0", "trainer.num_nodes=0 must be a whole number, 1 or more"),
    ):
        with pytest.raises(UsageError, match=sentence):
            train(chain.words("vocoder_waveform", tmp_path, more))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("trainer=gpu", "no trainer of accelerator=gpu devices=1 precision=bf16-mixed: No support"),
        ("trainer.precision=7", "precision=7: Precision 7 is invalid"),
        ("trainer.devices=-3", "no trainer of accelerator=cpu devices=-3 precision=32-true: "),
        ("trainer.accelerator=tpu", "no trainer of accelerator=tpu devices=1 precision=32-true: "),
    ],
)
def test_a_trainer_that_is_not_to_be_had_is_one_sentence(
    more: str, sentence: str, chain: Chain, tmp_path: Path
) -> None:
    if more == "trainer=gpu" and torch.cuda.is_available():
        pytest.skip("here it is to be had")
    with pytest.raises(UsageError, match=sentence):
        train(chain.words("vocoder_waveform", tmp_path, more))


# ---- debugging


@pytest.mark.parametrize("stage", ["sft_2", "vocoder_waveform"])
def test_overfit_repeats_two_batches_until_the_loss_is_gone(
    stage: str, chain: Chain, tmp_path: Path
) -> None:
    more = ("debug=overfit", "run.steps=80", "optim.lr=2e-2", "optim.warmup_steps=5")
    quiet = ("trainer.log_every_n_steps=2",)
    if stage == "sft_2":
        more += ("data.code_noise=0", "optim.lr=2e-2", "data.tasks.aqtaa.batch=1")
    run = train(chain.words(stage, tmp_path, *more, *quiet))
    losses = [float(row["train/loss"]) for row in rows(run)]
    assert losses[-1] < (0.1 if stage == "sft_2" else 0.7) * losses[0]
    assert not any("validation" in name for name in rows(run)[0])


def test_one_step_is_one_step(chain: Chain, tmp_path: Path) -> None:
    words = [w for w in chain.words("vocoder_waveform", tmp_path) if "run.steps" not in w]
    run = train([*words, "debug=one_step"])
    assert read_json(run / "lineage.json")["steps"] == 1 and len(rows(run)) == 1


def test_the_profiler_reports(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(chain.words("vocoder_waveform", tmp_path, "debug=profiler"))
    assert "FIT Profiler Report" in caplog.text
    assert {r.levelno for r in caplog.records if r.name.startswith("lightning")} == {logging.INFO}
