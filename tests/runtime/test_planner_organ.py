"""Plans of the small networks at their full size, against counts from elsewhere and real steps."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aqaa import cli
from aqaa.errors import UsageError
from aqaa.runtime import measured_step
from aqaa.runtime.catalogue import conf_dir, fitting
from aqaa.runtime.compose import compose
from aqaa.runtime.measured_step import measure_step
from aqaa.runtime.planner_organ import ORGANS, OrganPlan, make_organ_plan, refuse_what_does_not_fit
from aqaa.runtime.planner_time import Hardware

PRESETS = [(verb, name) for verb in ORGANS for name in fitting(verb)]
# Of the released files' tensors, less what is not trained; the judges are HiFi-GAN's and UnivNet's.
RELEASED = {
    "paper/tokenizer_linguistic": {"tokenizer": pytest.approx(158e6, rel=0.01)},
    "paper/tokenizer_semantic": {"tokenizer": pytest.approx(242e6, rel=0.01)},
    "paper/vocoder_flow": {"flow": pytest.approx(105.4e6, rel=0.01)},
    "paper/vocoder_waveform": {
        "head": pytest.approx(20.5e6, rel=0.01), "judges": pytest.approx(41.4e6, rel=0.01),
    },
}  # fmt: skip


def hardware(name: str) -> Hardware:
    from omegaconf import OmegaConf

    found: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"gpu/{name}.yaml"))
    return Hardware(**found)


@pytest.mark.parametrize(("verb", "preset"), PRESETS)
def test_every_preset_is_planned_at_its_full_size(
    verb: str, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", verb, f"preset={preset}", "as_json=true"]) == 0
    found = json.loads(capsys.readouterr().out)
    if preset in RELEASED:
        assert found["networks"] == RELEASED[preset]
    count = sum(found["networks"].values())
    kinds = found["rank_bytes"]
    assert kinds["optimizer"] == 2 * kinds["weights"] == 2 * kinds["gradients"] == 8 * count
    kept = kinds["weights"] + kinds["optimizer"] + kinds["running average"]
    assert kept + kinds["activations"] <= found["peak_bytes"] < 1.3 * sum(kinds.values())
    assert found["peak_bytes"] < found["usable_bytes"]
    # Twice the parameters forwards and four times that in all is the least that every frame costs.
    assert found["row_flops"] > 2 * count and found["hours"] > 0


@pytest.fixture(scope="module")
def tiny() -> OrganPlan:
    return make_organ_plan(
        "vocoder", ["preset=speech/vocoder_flow", "vocoder=token_flow_tiny"],
        gpu=hardware("a100-80"), nodes=2, gpus_per_node=4,
    )  # fmt: skip


@pytest.mark.parametrize("preset", ["speech/semantic_tiny", "walkthrough/vocoder_flow"])
def test_more_and_longer_rows_need_what_was_foreseen(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb = "vocoder" if "vocoder" in preset else "tokenizer"
    foreseen = measure_step(compose(verb, [f"preset={preset}"])).longer(2)
    monkeypatch.setattr(measured_step, "GROUPS", 2 * measured_step.GROUPS)
    monkeypatch.setattr(measured_step, "_ROWS", (3, 3, 7))
    seen: dict[str, list[int]] = {}

    class Noted(measured_step._Meter):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, *args)
            seen.update(peaks=self.backward_peaks, flops=self.flops)

    monkeypatch.setattr(measured_step, "_Meter", Noted)
    measure_step(compose(verb, [f"preset={preset}"]))
    gradients = 4 * sum(foreseen.parameters.values())
    for rows, peak in zip((3, 7), seen["peaks"][1:], strict=True):
        assert 0.95 * peak < foreseen.peak_bytes(rows) < 1.05 * peak + gradients
    assert 7 * foreseen.row_flops == pytest.approx(seen["flops"][2], rel=0.05)


def test_ranks_reduce_their_gradients(tiny: OrganPlan) -> None:
    count = tiny.parameters
    assert tiny.ranks == 8 and tiny.bytes_by_kind["reduction"] == 4 * count
    gpu = tiny.gpu
    sent = 2 * 7 / 8 * 4 * count
    assert tiny.network_s == pytest.approx(sent / (1e9 * gpu.network_gb_s * gpu.network_share))
    assert tiny.state_bytes == 12 * count + 4 * tiny.step.averaged > 15 * count


def test_what_does_not_fit_is_refused_with_the_nearest_batch(tiny: OrganPlan) -> None:
    from dataclasses import replace

    much = replace(tiny, rows=10**6)
    with pytest.raises(UsageError, match=r"the nearest that fits is data.batch=(\d+)") as told:
        refuse_what_does_not_fit(much)
    fitting_ = int(str(told.value).rpartition("=")[2])
    refuse_what_does_not_fit(replace(tiny, rows=fitting_))
    with pytest.raises(UsageError):
        refuse_what_does_not_fit(replace(tiny, rows=fitting_ + 1))
    small = replace(tiny.gpu, memory_gb=0.001, reserve_gb=0)
    with pytest.raises(UsageError, match="no batch is small enough"):
        refuse_what_does_not_fit(replace(tiny, gpu=small))


def test_the_job_trains_what_was_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "plan",
        "tokenizer",
        "preset=speech/semantic_tiny",
        "rows=5",
        f"out={tmp_path / 'job'}",
    ]
    assert cli.main(words) == 2
    assert "trainer=gpu" in capsys.readouterr().err and not (tmp_path / "job").exists()
    assert cli.main([*words, "trainer=gpu", "nodes=2", "gpus_per_node=4"]) == 0
    job = (tmp_path / "job").read_text()
    assert subprocess.run(["bash", "-n", tmp_path / "job"], check=False).returncode == 0
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"):
        assert f"#SBATCH {line}\n" in job
    command = job.splitlines()[-1].split("slurm/launch.sh ")[1].split()
    assert command[0] == "tokenizer" and "data.batch=5" in command and "trainer=gpu" in command
    assert compose(command[0], command[1:]).data.batch == 5


@pytest.mark.parametrize("word", ["backbone=step1_3b", "row_tokens=4096", "tokens=1e9", "model=x"])
def test_what_only_a_backbone_has_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "vocoder", "preset=speech/vocoder_flow", word]) == 2
    assert f"a vocoder has no {word.split('=')[0]}=" in capsys.readouterr().err
