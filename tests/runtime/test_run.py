"""How every training stage runs: kept when finished, resumed when cut, refused when it cannot be."""

import csv
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aqaa.errors import UsageError
from aqaa.runtime.compose import compose
from aqaa.storage import load_tensors, read_json
from tests.conftest import STAGES, STEPS, Chain

FLIPPABLE = "model.safetensors"


def train(words: list[str]) -> Path:
    from aqaa.runtime import run

    return run.train(words[0], compose(words[0], words[1:]))


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as handle:
        return list(csv.DictReader(handle))


class At:
    """Does something once, after a step."""

    def __init__(self, step: int, act: Any) -> None:
        self.step, self.act = step, act

    def __call__(self, step: int) -> None:
        if step == self.step:
            self.step = -1
            self.act()


@pytest.fixture
def after_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """``{"do": At(…)}`` is asked after every step, as if the world outside acted then."""
    from aqaa.runtime.callbacks import StopOnNonFinite

    real = StopOnNonFinite.on_train_batch_end
    world: dict[str, Any] = {"do": lambda step: None}

    def hook(self: Any, trainer: Any, *args: Any) -> None:
        real(self, trainer, *args)
        world["do"](trainer.global_step)

    monkeypatch.setattr(StopOnNonFinite, "on_train_batch_end", hook)
    yield world


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def crash() -> None:
    raise RuntimeError("the machine fell over")


def assert_same_run(a: Path, b: Path) -> None:
    mine, other = load_tensors(a / "model" / FLIPPABLE), load_tensors(b / "model" / FLIPPABLE)
    assert mine.keys() == other.keys()
    assert [name for name in mine if not mine[name].equal(other[name])] == []
    assert rows(a) == rows(b)
    assert read_json(a / "lineage.json")["fingerprint"] == (
        read_json(b / "lineage.json")["fingerprint"]
    )


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
    assert (run / "checkpoints/last.ckpt").is_file() and not (run / "lineage.json").exists()
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
    assert not (tmp_path / "vocoder_waveform/checkpoints/last.ckpt").exists()
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


def test_a_folder_of_something_else_is_not_taken(chain: Chain, tmp_path: Path) -> None:
    for name in ("corpus", "merge"):  # one has a manifest, one a record
        shutil.copytree(chain / name, tmp_path / name, ignore=shutil.ignore_patterns("*.wav"))
        words = chain.words("vocoder_waveform", tmp_path, f"run.name={name}", "run.overwrite=true")
        with pytest.raises(UsageError, match=f"{name} holds something else than a training run"):
            train(words)
        assert not (tmp_path / name / "config.yaml").exists()


@pytest.mark.parametrize("lost", ["model/model.safetensors", "model/MANIFEST.sha256", "model"])
def test_a_run_cut_in_half_is_made_again(
    lost: str, chain: Chain, spoil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spoil / "vocoder_waveform" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    out = train(chain.words("vocoder_waveform", spoil))
    assert "making it again" in capsys.readouterr().out
    assert_same_run(out, chain / "vocoder_waveform")


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


def test_half_a_saved_state_is_one_sentence(
    chain: Chain, tmp_path: Path, after_step: dict[str, Any]
) -> None:
    words = chain.words("vocoder_waveform", tmp_path)
    after_step["do"] = At(3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(words)
    last = tmp_path / "vocoder_waveform/checkpoints/last.ckpt"
    whole = last.read_bytes()
    for part in (b"", whole[:100], whole[: len(whole) // 2], b"x" * 1000):
        last.write_bytes(part)
        with pytest.raises(UsageError, match="last.ckpt is damaged .* remove it to begin") as caught:
            train(words)
        assert "\n" not in str(caught.value)
    last.unlink()
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
    from aqaa.storage import read_json, write_json, write_manifest

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
    tensors = load_tensors(chain / "sft_2" / "model" / FLIPPABLE)
    assert record["parameters"] == sum(t.numel() for t in tensors.values())
    assert record["seconds"] > 0


# ---- what goes wrong in training


def test_a_loss_that_is_no_number_stops_the_run(chain: Chain, tmp_path: Path) -> None:
    words = chain.words("vocoder_flow", tmp_path, "optim.lr=1e30", "optim.warmup_steps=1")
    with pytest.raises(UsageError, match=r"the loss is (nan|inf) at step \d+: lower optim.lr"):
        train([*words, "trainer.gradient_clip_val=null"])
    assert not (tmp_path / "vocoder_flow" / "lineage.json").exists()


def test_a_full_disk_keeps_the_state_saved_before(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_step: dict[str, Any]
) -> None:
    import errno

    import lightning.pytorch as pl

    words = chain.words("vocoder_flow", tmp_path, "run.save_every_s=0")
    real = pl.Trainer.save_checkpoint

    def save(self: pl.Trainer, path: Path) -> None:
        real(self, path)
        if self.global_step == 4:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])  # as much as there was room for
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", save)
    with pytest.raises(UsageError, match="last.ckpt: No space left on device; make room") as caught:
        train(words)
    assert "\n" not in str(caught.value)
    folder = tmp_path / "vocoder_flow" / "checkpoints"
    assert [p.name for p in folder.iterdir()] == ["last.ckpt"]
    monkeypatch.undo()
    assert_same_run(train(words), chain / "vocoder_flow")


def test_a_config_that_does_not_fit_is_refused_before_anything_is_made(
    chain: Chain, tmp_path: Path
) -> None:
    for more, sentence in (
        ("+stage.betta=1", "stage.betta does not fit: aqaa.stages.vocoder.Waveform takes"),
        ("stage._target_=os.system", "stage._target_ = os.system is refused"),
        ("vocoder.blocks=many", "vocoder.blocks = 'many' does not fit: it must be int"),
    ):
        with pytest.raises(UsageError, match=sentence):
            train(chain.words("vocoder_waveform", tmp_path, more))
    assert not list(tmp_path.iterdir())


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
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(chain.words("vocoder_waveform", tmp_path, "debug=profiler"))
    streams = capsys.readouterr()
    assert "FIT Profiler Report" in streams.out + streams.err
