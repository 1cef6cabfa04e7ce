"""A saved state is whole or not used: one wrong byte is found, and the state before it taken."""

import os
import random
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aqaa.errors import UsageError
from aqaa.runtime.checkpoint import StateFiles, read_state
from aqaa.runtime.saving import SaveState, StopRequested
from aqaa.runtime.tensor_file import HostCopy
from aqaa.states import saved_states, step_folder, sweep
from tests.runtime.toy import Toy, fit

FLIPS = 300


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    a, b = (torch.randn(*shape, generator=generator) for shape in ((5, 3), (7,)))
    weights = {"a": a, "b": b}
    return {"global_step": step, "state_dict": weights, "flag": torch.tensor(True), "none": None}


def saved(folder: Path, *steps: int, keep: int = 2) -> StateFiles:
    files = StateFiles(keep=keep)
    for step in steps:
        files.save_checkpoint(state(step), step_folder(folder, step))
    files.writer.wait()
    return files


def assert_state(found: dict[str, Any], step: int) -> None:
    wanted = state(step)
    assert found.keys() == wanted.keys() and found["global_step"] == step
    assert all(found["state_dict"][k].equal(v) for k, v in wanted["state_dict"].items())
    assert found["flag"].equal(wanted["flag"]) and found["none"] is None


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_comes_back_and_anybody_can_read_the_tensors(tmp_path: Path) -> None:
    files = saved(tmp_path, 3)
    assert_state(files.load_checkpoint(tmp_path), 3)
    plain = load_file(tmp_path / "step_00000003/state.safetensors")
    assert plain["state_dict.a"].equal(state(3)["state_dict"]["a"])
    assert names(tmp_path / "step_00000003") == [
        "MANIFEST.sha256",
        "state.json",
        "state.safetensors",
    ]


def test_any_flipped_or_missing_byte_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = saved(tmp_path / "good", 3, 4)
    rng = random.Random(0)
    whole = list((tmp_path / "good/step_00000004").iterdir())
    places = [(path, at) for path in whole for at in range(path.stat().st_size)]
    for number in range(FLIPS):
        file, at = rng.choice(places)
        spoilt = tmp_path / "spoilt"
        shutil.copytree(tmp_path / "good", spoilt)
        data = bytearray(file.read_bytes())
        if number % 3:
            data[at] ^= 1 << rng.randrange(8)
        else:
            del data[at]
        (spoilt / file.parent.name / file.name).write_bytes(data)
        assert_state(files.load_checkpoint(spoilt), 3)
        said = capsys.readouterr().err
        assert "step_00000004" in said and said.endswith("; taking the state before it\n"), said
        assert names(spoilt) == ["damaged_step_00000004", "step_00000003"]
        shutil.rmtree(spoilt)


@pytest.mark.parametrize("file", ["MANIFEST.sha256", "state.json", "state.safetensors"])
def test_a_missing_or_foreign_file_is_found(file: str, tmp_path: Path) -> None:
    files = saved(tmp_path, 3, 4)
    (tmp_path / "step_00000004" / file).unlink()
    assert_state(files.load_checkpoint(tmp_path), 3)
    (tmp_path / "step_00000003" / "more").write_text("")
    with pytest.raises(UsageError, match=r"every saved state .* is damaged \(step_00000003\)"):
        files.load_checkpoint(tmp_path)
    assert "step_00000003" in names(tmp_path)  # it may still be mended


def test_the_latest_few_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 10, keep=3)
    assert [p.name for p in saved_states(tmp_path)] == [
        "step_00000010",
        "step_00000003",
        "step_00000002",
    ]
    with pytest.raises(UsageError, match="run.keep_states=0"):
        StateFiles(keep=0)


def test_the_same_step_may_be_saved_again(tmp_path: Path) -> None:
    files = saved(tmp_path, 3)
    files.save_checkpoint(state(3), step_folder(tmp_path, 3))
    files.writer.wait()
    assert names(tmp_path) == ["step_00000003"]
    assert_state(files.load_checkpoint(tmp_path), 3)


def test_what_is_written_is_the_state_as_it_was_when_it_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, may_write = StateFiles(keep=1), threading.Event()
    real = HostCopy.write

    def late(self: HostCopy, path: Path) -> str:
        assert may_write.wait(30)
        return real(self, path)

    monkeypatch.setattr(HostCopy, "write", late)
    value = state(3)
    files.save_checkpoint(value, step_folder(tmp_path, 3))
    value["state_dict"]["a"].zero_()  # the next step
    assert saved_states(tmp_path) == []  # nobody waited
    may_write.set()
    files.writer.wait()
    assert_state(files.load_checkpoint(tmp_path), 3)


def test_memory_is_taken_once(tmp_path: Path) -> None:
    copy = HostCopy()
    copy.take({"a": torch.ones(100), "b": torch.ones(3, dtype=torch.int64)})
    place = copy._memory.data_ptr()
    for tensors in ({"a": torch.rand(100)}, {"c": torch.rand(2, 3, dtype=torch.float64)}):
        copy.take(tensors)
        assert copy._memory.data_ptr() == place
        copy.write(tmp_path / "file")
        found = load_file(tmp_path / "file")
        assert found.keys() == tensors.keys()
        assert all(found[k].equal(v) for k, v in tensors.items())


def test_memory_is_taken_before_the_first_save(tmp_path: Path) -> None:
    files, state = StateFiles(keep=1), {"a": torch.rand(1000), "b": torch.rand(24)}
    files.reserve(tmp_path, state_bytes=4096 + 100, shard_bytes=0, pinned=False)
    files.writer.wait()
    place = files._state._memory.data_ptr()
    files.save_checkpoint(state, step_folder(tmp_path, 1))
    files.writer.wait()
    assert files._state._memory.data_ptr() == place
    found = files.load_checkpoint(tmp_path)
    assert all(found[name].equal(tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.rand(4, 3).T, "b": torch.tensor(1.5), "e": torch.empty(0, 3)},
        {"a": torch.rand(3).bfloat16(), "b": torch.ones(3, dtype=torch.uint8), "c": torch.rand(1)},
        {"only": torch.empty(0)},
        {"h": torch.rand(2).half(), "t": torch.ones(5, dtype=torch.bool), "i": torch.arange(2)},
    ],
)
def test_every_kind_of_tensor_comes_back(tensors: dict[str, Any], tmp_path: Path) -> None:
    files = StateFiles(keep=1)
    files.save_checkpoint(tensors, step_folder(tmp_path, 0))
    files.writer.wait()
    found, shards = read_state(step_folder(tmp_path, 0))
    assert shards is None
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].equal(tensor)


def test_other_tensors_are_refused_by_name(tmp_path: Path) -> None:
    for odd in (torch.ones(2).to_sparse(), torch.ones(2, device="meta"), torch.ones(2) * 1j):
        with pytest.raises(TypeError, match="state.odd is a tensor of"):
            StateFiles(keep=1).save_checkpoint({"state": {"odd": odd}}, step_folder(tmp_path, 0))


def test_an_error_of_the_writer_is_told_and_the_state_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = saved(tmp_path, 3)

    def fail(self: HostCopy, path: Path) -> str:
        path.write_bytes(b"half")
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(HostCopy, "write", fail)
    files.save_checkpoint(state(4), step_folder(tmp_path, 4))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        files.writer.wait()
    files.writer.wait()  # told once
    assert names(tmp_path) == ["step_00000003"]


def test_what_a_killed_run_had_begun_is_named_and_swept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 3)
    shutil.copytree(tmp_path / "step_00000003", tmp_path / ".step_00000004.writing")
    shutil.copytree(tmp_path / "step_00000003", tmp_path / ".step_00000002.old")
    sweep(tmp_path)
    assert names(tmp_path) == ["step_00000003"]
    said = capsys.readouterr().err
    assert "step_00000004.writing was cut while it was written" in said and said.count("\n") == 1


def test_a_state_cut_while_it_was_replaced_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, real = saved(tmp_path, 3), os.replace

    def cut(source: Path, target: Path) -> None:
        if source.suffix == ".writing":
            raise KeyboardInterrupt  # as good as a power cut: nothing is put right behind it
        real(source, target)

    monkeypatch.setattr(os, "replace", cut)
    files.save_checkpoint(state(3), step_folder(tmp_path, 3))
    with pytest.raises(KeyboardInterrupt):
        files.writer.wait()
    monkeypatch.undo()
    assert not saved_states(tmp_path)
    sweep(tmp_path)
    assert names(tmp_path) == ["step_00000003"]
    assert_state(files.load_checkpoint(tmp_path), 3)


# ---- in a training: dropout, so that the generators count


class Draws(SaveState):
    """Draws from every generator before each step, as an augmentation might."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.drawn: list[tuple[float, ...]] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        super().on_train_batch_start(trainer, *args)
        self.drawn.append((random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))))
        if trainer.global_step in self.ask_at:
            signal.raise_signal(self.ask_at.pop(trainer.global_step))

    ask_at: dict[int, int] = {}


def toy_run(folder: Path, ask_at: dict[int, int], **more: Any) -> tuple[list[Any], list[float]]:
    files, toy = StateFiles(keep=2), Toy()
    saver = Draws(files=files, folder=folder, every_s=1000)
    saver.ask_at = ask_at
    path = folder if saved_states(folder) else None
    try:
        fit(toy, [saver], steps=9, plugins=[files], ckpt_path=path, **more)
    except StopRequested as stop:
        assert stop.number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
    return saver.drawn, toy.losses


@pytest.mark.parametrize("accumulate", [1, 2])
def test_generators_losses_and_batches_go_on_as_if_nothing_had_been(
    accumulate: int, tmp_path: Path
) -> None:
    def seed(number: int) -> None:
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)

    seed(1)
    whole = toy_run(tmp_path / "whole", {}, accumulate=accumulate)
    drawn: list[Any] = []
    losses: list[float] = []
    seed(1)
    for cut in ({3: signal.SIGUSR1}, {4: signal.SIGTERM}, {7: signal.SIGINT}, {}):
        more = toy_run(tmp_path / "cut", dict(cut), accumulate=accumulate)
        drawn, losses = drawn + more[0], losses + more[1]
        seed(99)  # another process: whatever its generators stand at
    assert losses == whole[1] and len(losses) == 9 * accumulate
    assert drawn == whole[0]


def test_memory_for_copies_is_there_when_the_first_save_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, int]] = []
    real = HostCopy.take

    def noted(self: HostCopy, tensors: Any) -> None:
        before = len(self._memory)
        real(self, tensors)
        taken.append((before, sum(tensor.nbytes for tensor in tensors.values())))

    monkeypatch.setattr(HostCopy, "take", noted)
    toy_run(tmp_path, {3: signal.SIGUSR1})
    assert taken and all(0 < needed <= before for before, needed in taken)
