"""Plans of presets at their full size, against arithmetic by hand; refusals; the sbatch file."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aqaa import cli
from aqaa.errors import UsageError
from aqaa.runtime.catalogue import conf_dir, fitting
from aqaa.runtime.compose import compose
from aqaa.runtime.planner import (
    PLANNED,
    Plan,
    make_plan,
    nearest_fit,
    refuse_endless_saving,
    refuse_what_does_not_fit,
)
from aqaa.runtime.planner_memory import state_bytes
from aqaa.runtime.planner_time import Hardware

N = 131_946_590_208
LAYERS, WIDTH, INNER, ROWS = 88, 12288, 31232, 74752
SLIM = "stage.activation_checkpointing=true"


def yaml(path: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    found: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{path}.yaml"))
    return found


def big(
    *words: str, verb: str = "sft", gpu: str = "h100-80", nodes: int = 8, rows: int | None = 1
) -> Plan:
    """A plan of the 130B backbone."""
    return make_plan(
        verb, [f"preset=paper/{'dpo' if verb == 'dpo' else 'sft_1'}", *words],
        gpu=Hardware(**yaml(f"gpu/{gpu}")), backbone=yaml("backbone/step1_130b"),
        nodes=nodes, gpus_per_node=8, rows=rows, row_tokens=4096,
    )  # fmt: skip


PRESETS = [(verb, name) for verb in PLANNED for name in fitting(verb) if name.startswith("paper/")]


@pytest.mark.parametrize(("verb", "preset"), PRESETS)
def test_every_preset_of_the_paper_is_planned_at_its_full_size(
    verb: str, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [verb, f"preset={preset}", "backbone=step1_130b", "gpu=h200"]
    words += ["row_tokens=1024"] if verb == "dpo" else []  # a pair is two short answers
    assert cli.main(["plan", *words, "as_json=true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == found["trainable"] == N
    assert (found["nodes"], found["gpus_per_node"], found["zero_stage"]) == (16, 8, 3)
    assert found["peak_bytes"] < found["usable_bytes"] and found["limit"] in ("network", "compute")
    assert 0.1 < found["mfu"] < 0.6 and found["hours"] > 0
    every_s = compose(verb, [f"preset={preset}"]).run.save_every_s
    assert found["checkpoint_s"] < 0.02 * every_s  # the disk is not ours alone


SMALL = [(v, name) for v in PLANNED for name in fitting(v) if not name.startswith("paper/")]


@pytest.mark.parametrize(("verb", "preset"), SMALL)
def test_every_other_preset_is_planned_with_the_walkthrough_s_backbone(
    verb: str, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [verb, f"preset={preset}", "backbone=step1_tiny", "table_rows=5632", "gpu=cpu"]
    assert cli.main(["plan", *words, "as_json=true"]) == 0
    found = json.loads(capsys.readouterr().out)
    # A tied table; four layers of queries, keys, values, output, three of the MLP, two norms.
    layer = 128 * 128 + 2 * 128 * 64 + 128 * 128 + 3 * 128 * 320 + 2 * 128
    assert found["parameters"] == found["trainable"] == 5632 * 128 + 4 * layer + 128
    assert (found["nodes"], found["gpus_per_node"], found["zero_stage"]) == (1, 1, 0)
    assert found["peak_bytes"] < found["usable_bytes"] and found["hours"] > 0
    assert found["steps"] == compose(verb, [f"preset={preset}"]).run.steps


def test_the_states_of_130b() -> None:
    found = big(SLIM)
    assert state_bytes(found.shape, found.place) == 16 * N  # 2.11 TB: 2 + 2 + 4 + 8 bytes each
    assert 16 * 130e9 == pytest.approx(2.08e12)
    kinds = found.memory.kinds()
    assert kinds["weights"] == kinds["gradients"] == -(-2 * N // 64)
    assert kinds["optimizer"] == -(-12 * N // 64)
    # What enters each of 88 layers, one layer's own, and the gradients in it.
    entering = LAYERS * 4096 * WIDTH * 2
    assert kinds["activations"] == pytest.approx(entering + 1.5 * 4096 * 594_316, rel=0.05)
    assert kinds["activations"] > entering
    # 2^25 logits in float32 and bf16, and the head's gradient in both.
    assert kinds["logits"] == pytest.approx(6 * 2**25 + 6 * ROWS * WIDTH, rel=0.03)


def test_what_130b_takes_in_the_hosts() -> None:
    from aqaa.runtime.planner_memory import host_memory

    found = big(SLIM)
    copy = -(-12 * N // 64)
    assert copy < 2**35 and copy > 2**34  # pinned memory comes in powers of two
    assert found.record()["host_bytes"] == {"copy for saves": 2**35, "optimizer": 0, "weights": 0}
    offloaded = big(SLIM, "trainer.strategy.offload=all").record()["host_bytes"]
    assert offloaded["copy for saves"] == copy  # of memory to memory
    assert offloaded["optimizer"] == -(-16 * N // 64) and offloaded["weights"] == -(-2 * N // 64)
    here = host_memory(found.shape, found.place.with_(host=True))
    assert here["copy for saves"] == copy
    alone = host_memory(found.shape, found.place.with_(stage=0, host=True))
    assert alone["copy for saves"] == 12 * N


def test_saving_takes_a_share_of_the_time() -> None:
    found = big(SLIM, "run.save_every_s=400")
    assert found.timing.checkpoint_s == pytest.approx(12 * N / (5e9 * 8))
    assert found.record()["saving_share"] == pytest.approx(found.timing.checkpoint_s / 400)
    step = big(SLIM, "run.save_every_s=0", "trainer.accumulate_grad_batches=64")
    assert step.saving_share == pytest.approx(step.timing.checkpoint_s / step.timing.step_s)
    refuse_endless_saving(step)  # a step alone takes longer than a save
    with pytest.raises(UsageError, match=r"nearest that fits is run.save_every_s=40, and") as told:
        refuse_endless_saving(big(SLIM, "run.save_every_s=30"))
    assert "run.save_every_s=30 is less than the 40 s" in str(told.value)
    refuse_endless_saving(big(SLIM, "run.save_every_s=40"))


def test_the_speed_of_130b() -> None:
    found = big(SLIM)
    time = found.timing
    share = 63 / 64
    assert time.gathered_bytes == pytest.approx(share * 2 * 2 * N)
    assert time.reduced_bytes == pytest.approx(share * 2 * N)
    # Three times the weights in bf16 over 50 GB/s of which 80 % are reached.
    assert time.network_s == pytest.approx(share * 6 * N / 40e9)
    no_table = N - ROWS * WIDTH
    attention = 6 * 4096 * WIDTH * LAYERS
    assert time.model_flops == pytest.approx(6 * no_table + attention)
    work = 8 * no_table + attention * 4 / 3
    assert time.compute_s == pytest.approx(4096 * work / (0.55 * 989e12))
    assert time.limit == "network" and time.step_s == time.network_s
    assert time.mfu == pytest.approx(4096 * time.model_flops / (time.step_s * 989e12))
    assert time.tokens_per_s == pytest.approx(64 * 4096 / time.step_s)
    assert time.checkpoint_bytes == 12 * N
    assert big(SLIM, rows=4, gpu="h200").timing.limit == "compute"


@pytest.mark.parametrize(("gpu", "name", "row_tokens"),
                         [("h200", "H200", 16_384), ("h100-80", "H100", 8_192)])  # fmt: skip
def test_the_printed_table_is_what_is_planned(gpu: str, name: str, row_tokens: int) -> None:
    page = (conf_dir().parent / "recipes" / "README.md").read_text("utf-8")
    rows = re.findall(rf"^\| (\d+) x 8 {name} \| (.*) \|$", page, re.MULTILINE)
    assert [int(nodes) for nodes, _ in rows] == [8, 16, 32, 64, 128]
    for nodes, printed in rows:
        found = make_plan(
            "sft", ["preset=paper/sft_1", f"data.row_tokens={row_tokens}"],
            gpu=Hardware(**yaml(f"gpu/{gpu}")), backbone=yaml("backbone/step1_130b"),
            nodes=int(nodes),
        )  # fmt: skip
        time, usable = found.timing, found.gpu.usable_bytes
        assert printed == (
            f"{found.memory.peak / 1e9:.1f} of {usable / 1e9:.0f} | {time.compute_s:.1f}, "
            f"{time.network_s:.1f} | {time.limit} | {time.tokens_per_s:,.0f} | "
            f"{100 * time.mfu:.1f} % | {time.checkpoint_s:.0f} s"
        )


def test_packed_rows_come_from_the_preset() -> None:
    gpus = {name: Hardware(**yaml(f"gpu/{name}")) for name in ("h200", "h100-80")}
    found = {
        name: make_plan(
            "sft", ["preset=paper/sft_1"], gpu=gpu, backbone=yaml("backbone/step1_130b")
        )
        for name, gpu in gpus.items()
    }
    place = found["h200"].place
    assert (place.rows, place.row_tokens, place.ranks) == (1, 16384, 128)
    assert found["h200"].memory.peak < found["h200"].gpu.usable_bytes
    assert found["h200"].timing.limit == "compute"  # long rows hide the gathers
    # 78.5 GB: more than 128 H100 leave; half a row fits, and then the network is the limit.
    assert nearest_fit(found["h100-80"]) == "the nearest that fits is row_tokens=8192"


def test_what_the_ranks_share_by_stage() -> None:
    kinds = {}
    for stage in (1, 2, 3):
        kinds[stage] = big(SLIM, f"trainer.strategy.stage={stage}").memory.kinds()
    assert kinds[1]["weights"] == kinds[2]["weights"] == 2 * N
    assert kinds[1]["gradients"] == 2 * N and kinds[2]["gradients"] == -(-2 * N // 64)
    assert kinds[1]["optimizer"] == kinds[3]["optimizer"]
    summed = big(SLIM, "trainer.accumulate_grad_batches=2").memory.kinds()
    assert summed["gradients"] == -(-4 * N // 64)  # in float32
    offloaded = big(SLIM, "trainer.strategy.offload=all").memory.kinds()
    assert offloaded["optimizer"] == offloaded["weights"] == 0


def test_an_adapter_has_hardly_any_optimizer() -> None:
    found = big(SLIM, "adapter=lora")
    assert found.shape.whole.trainable < 0.01 * N
    assert found.memory.optimizer == -(-12 * found.shape.whole.trainable // 64)
    model = found.timing.model_flops - 6 * 4096 * WIDTH * LAYERS
    assert model == pytest.approx(4 * N, rel=0.01)


def test_what_cannot_fit_is_refused_with_the_nearest_that_can() -> None:
    full = big("stage.activation_checkpointing=false", nodes=8)
    with pytest.raises(UsageError, match=rf"needs .* GB a rank .*most for activations.*: .*{SLIM}"):
        refuse_what_does_not_fit(full)
    assert nearest_fit(big(SLIM, nodes=8, rows=4)) == "the nearest that fits is rows=2"
    few = big(SLIM, nodes=2)
    words = nearest_fit(few)
    assert words.startswith("the nearest that fits is nodes=")
    nodes = int(words.rpartition("=")[2])
    refuse_what_does_not_fit(big(SLIM, nodes=nodes))
    with pytest.raises(UsageError):
        refuse_what_does_not_fit(big(SLIM, nodes=nodes - 1))
    whole = big(SLIM, "trainer.strategy.stage=1")
    assert "no number of nodes" in nearest_fit(whole)  # whole weights stay 264 GB on any number


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["merge"], "merge cannot be planned: there are pretrain, sft, dpo, tokenizer, vocoder"),
        (["sft", "preset=paper/sft_1"], "does not exist yet, so its size is not known"),
        (["sft", "preset=paper/sft_1", "backbone=step1_3b", "nodes=0"], "trainer.num_nodes=0"),
        (["sft", "preset=paper/sft_1", "backbone=step1_3b", "rows=0"], "rows=0"),
        (["sft", "preset=paper/sft_1", "backbone=step1_3b", "tokens=-5"], "tokens=-5"),
        (["sft", "preset=walkthrough/sft_1", "trainer.strategy=fsdp"], "trainer.strategy=fsdp is"),
        (["sft", "optmi.lr=1"], "sft has no key optmi.lr: the nearest is optim.lr"),
        (["sft", "gpu=h1000"], "gpu has no option h1000"),
        ([], "plan needs verb="),
    ],
)
def test_errors_of_use(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    absent = [f"run.root={tmp_path}"] if words[:1] == ["sft"] and "optmi.lr=1" not in words else []
    assert cli.main(["plan", *words, *absent]) == 2
    assert sentence in capsys.readouterr().err


def test_the_table_and_the_sbatch_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.sh"
    words = ["sft", "preset=paper/sft_1", SLIM, "run.name='it is'", "rows=1", "gpu=h200"]
    assert cli.main(["plan", *words, "backbone=step1_130b", "nodes=4", f"out={job}"]) == 0
    said = capsys.readouterr().out
    parts = ["131,946,590,208", "2.11 TB", "ZeRO-3", "peak, in the", "limit", "MFU"]
    for part in [*parts, "in its host: copy for saves", "4.4 % of the time"]:
        assert part in said
    subprocess.run(["bash", "-n", str(job)], check=True)
    text = job.read_text()
    for part in ("nodes=4", "ntasks-per-node=8", "gpus-per-node=8", "signal=B:USR1@300"):
        assert f"#SBATCH --{part}\n" in text
    ask = f"printf '%s\\n' sft preset=paper/sft_1 {SLIM}"
    assert "exec bash slurm/launch.sh sft preset=paper/sft_1" in text
    run = text.splitlines()[-1].replace("exec bash slurm/launch.sh", "printf '%s\\n'")
    given = subprocess.run(["bash", "-c", run], capture_output=True, text=True, check=True).stdout
    words = ["sft", "preset=paper/sft_1", SLIM, "run.name='it is'", "data.rows=1"]
    assert given.splitlines() == words, ask


def test_the_file_trains_what_was_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.sh"
    words = ["sft", "preset=paper/sft_1", "backbone=step1_3b", "rows=2", "row_tokens=4096"]
    assert cli.main(["plan", *words, "tokens=1e9", f"out={job}", "as_json=true"]) == 0
    planned = json.loads(capsys.readouterr().out)
    verb, *told = job.read_text().splitlines()[-1].partition("launch.sh ")[2].split()
    assert "3,529,706,496 parameters" in job.read_text()
    again = make_plan(
        verb, told, gpu=Hardware(**yaml("gpu/h100-80")), backbone=yaml("backbone/step1_3b")
    )
    assert (again.place.rows, again.place.row_tokens) == (2, 4096)
    assert again.record() == planned and again.steps != 4000


def test_rows_that_a_training_cannot_be_told_are_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dpo", "preset=paper/dpo", "backbone=step1_3b", "rows=2"]
    assert cli.main(["plan", *words, "as_json=true"]) == 0  # to look at
    assert cli.main(["plan", *words, f"out={tmp_path / 'job.sh'}"]) == 2
    assert "would train other rows" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_names_its_trainer_where_the_launcher_would_take_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sft", "preset=walkthrough/sft_1", "backbone=step1_tiny", f"out={tmp_path / 'job.sh'}"]
    assert cli.main(["plan", *words]) == 2
    assert "say trainer=zero3_nodes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert cli.main(["plan", *words, "trainer=zero3_nodes"]) == 0
    assert "trainer=zero3_nodes" in (tmp_path / "job.sh").read_text().splitlines()[-1]


def test_a_refused_plan_writes_no_file(tmp_path: Path) -> None:
    job = tmp_path / "job.sh"
    words = ["sft", "preset=paper/sft_1", "backbone=step1_130b", "nodes=1", f"out={job}"]
    assert cli.main(["plan", *words]) == 2
    assert not job.exists()


def test_a_job_of_another_backbone_than_its_parent_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from aqaa.backbone.shape import step1_config

    model, job = tmp_path / "model", tmp_path / "job.sh"
    small = yaml("backbone/step1_200m")
    step1_config(small, table_rows=74752).save_pretrained(model)
    words = ["plan", "sft", "preset=paper/sft_1", "nodes=1", f"parents.model={model}", SLIM]
    assert cli.main([*words, "backbone=step1_3b", f"out={job}"]) == 2
    said = capsys.readouterr().err
    assert f"would train {model}, of " in said and "and this plan is of 3,529,706,496" in said
    assert not job.exists()
    assert cli.main([*words, "backbone=step1_200m", f"out={job}"]) == 0
    assert f"parents.model={model}" in job.read_text()
    assert cli.main([*words, "backbone=step1_3b"]) == 0  # a plan alone may ask what if
