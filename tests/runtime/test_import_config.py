"""`aqaa import-config`: another trainer's settings as commands that compose; what has no place."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig

from aqaa.cli import main
from aqaa.errors import UsageError
from aqaa.runtime.compose import compose
from aqaa.runtime.foreign_keys import DEFAULTS, Keys, trainer_settings
from aqaa.runtime.import_config import import_config

LLAMAFACTORY = {
    "model_name_or_path": "models/qwen", "stage": "sft", "do_train": True,
    "finetuning_type": "lora", "lora_target": "q_proj,v_proj", "lora_rank": 4,
    "dataset": "talk", "dataset_dir": "data", "template": "qwen2_audio", "cutoff_len": 2048,
    "output_dir": "saves/qwen/talk", "logging_steps": 10, "save_steps": 500,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "learning_rate": 1e-4,
    "num_train_epochs": 3.0, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True,
    "eval_steps": 20, "neftune_alpha": 5,
}  # fmt: skip
SWIFT = {
    "model": "models/qwen", "train_type": "full", "dataset": ["talk.jsonl"], "max_length": 4096,
    "torch_dtype": "bfloat16", "packing": True, "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4, "max_steps": 700, "warmup_steps": 30, "seed": 7,
    "deepspeed": "zero2", "report_to": ["wandb", "tensorboard"], "save_total_limit": 2,
    "gradient_checkpointing": False, "output_dir": "output",
}  # fmt: skip
ROWS = [("spoken", "said <audio>")] * 5 + [("spoken", "written")] * 2 + [("asked", "written")]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both tools' data."""
    monkeypatch.chdir(tmp_path)
    for name in ("PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")  # the command line sets these for its process
    Path("data").mkdir()
    theirs = [{"conversations": [{"from": "human", "value": "<audio>" if q == "spoken" else q},
                                 {"from": "gpt", "value": a}]} for q, a in ROWS]  # fmt: skip
    Path("data/talk.json").write_text(json.dumps(theirs))
    about = {"talk": {"file_name": "talk.json", "formatting": "sharegpt"}}
    Path("data/dataset_info.json").write_text(json.dumps(about))
    lines = [{"messages": [{"role": "user", "content": "<audio>" if q == "spoken" else q},
                           {"role": "assistant", "content": a}]} for q, a in ROWS]  # fmt: skip
    Path("talk.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def written(given: dict[str, Any], **more: Any) -> tuple[DictConfig, list[list[str]], str]:
    """The config of the last command, all commands, and the script."""
    Path("train.yaml").write_text(yaml.safe_dump({**given, **more}))
    assert main(["import-config", "train.yaml", "out=train.sh"]) == 0
    script = Path("train.sh").read_text()
    commands = [shlex.split(line) for line in script.splitlines() if line.startswith("aqaa ")]
    *_, last = commands
    return compose(last[1], last[2:]), commands, script


def unmapped(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#   (\w+): (.*)$", script, re.MULTILINE))


def test_a_lora_training_by_hand() -> None:
    cfg, commands, script = written(LLAMAFACTORY)
    assert commands[-1][:2] == ["aqaa", "sft"]
    assert (cfg.run.root, cfg.run.name, cfg.run.seed) == ("saves/qwen", "talk", 42)
    assert (cfg.adapter.rank, cfg.adapter.alpha, cfg.adapter.dropout) == (4, 8, 0.0)
    assert cfg.adapter.targets == ["q_proj", "v_proj"]
    assert cfg.run.steps == 4  # 8 rows x 3 epochs in steps of 6
    assert (cfg.optim.lr, cfg.optim.schedule, cfg.optim.final_ratio) == (1e-4, "cosine", 0.0)
    assert (cfg.optim.betas, cfg.optim.weight_decay, cfg.optim.warmup_steps) == ([0.9, 0.999], 0, 0)
    assert (cfg.trainer.accumulate_grad_batches, cfg.trainer.val_check_interval) == (3, 60)
    assert (cfg.trainer.precision, cfg.trainer.accelerator) == ("bf16-mixed", "gpu")
    assert cfg.data.tasks == {
        "aqtaa": {"share": 5, "batch": 2}, "aqta": {"share": 2, "batch": 2},
        "tqta": {"share": 1, "batch": 2},
    }  # fmt: skip
    assert cfg.data.row_tokens is None and cfg.stage.normalise == "table"
    assert unmapped(script).keys() == {
        *("do_train", "template", "cutoff_len", "save_steps", "neftune_alpha")
    }
    assert unmapped(script)["neftune_alpha"] == "5  (no such setting here)"
    assert unmapped(script)["save_steps"] == "500  (states are saved by time: run.save_every_s)"


def test_a_full_training_in_shards_by_hand() -> None:
    cfg, commands, script = written(SWIFT)
    assert (cfg.run.root, cfg.run.name, cfg.run.seed, cfg.run.steps) == (".", "output", 7, 700)
    assert cfg.adapter == {} and cfg.optim.lr == 1e-5  # what ms-swift takes for all weights
    assert (cfg.optim.betas, cfg.optim.weight_decay) == ([0.9, 0.95], 0.1)
    assert (cfg.optim.warmup_steps, cfg.stage.activation_checkpointing) == (30, False)
    assert (cfg.data.row_tokens, cfg.data.rows) == (4096, 1)
    assert (cfg.trainer.strategy.stage, cfg.trainer.num_nodes) == (2, 1)
    assert cfg.log.logger._target_.endswith("WandbLogger") and cfg.run.keep_states == 2
    assert unmapped(script).keys() == {"report_to"}
    assert "tensorboard" in unmapped(script)["report_to"]
    assert [words[1:3] for words in commands] == [
        ["data", "convert"], ["data", "convert"], ["data", "tokenize"], ["init", "./init"],
        ["sft", "adapter=none"],
    ]  # fmt: skip
    assert 'tokenizers="$TOKENIZERS"' in script


def test_preferences_by_hand() -> None:
    cfg, commands, script = written(
        LLAMAFACTORY, stage="dpo", pref_beta=0.3, pref_loss="orpo", dataset="talk"
    )
    assert commands[-1][:2] == ["aqaa", "dpo"]
    assert (cfg.stage.beta, cfg.data.mask, cfg.data.batch) == (0.3, "none", 2)
    assert {"pref_loss", "dataset"} <= unmapped(script).keys()


# Another value for every key of the two, by kind of value where none is named.
OTHERS: dict[str, Any] = {
    "stage": "pt", "finetuning_type": "full", "train_type": "lora", "torch_dtype": "float32",
    "lr_scheduler_type": "polynomial", "deepspeed": "ds_z3_offload_config.json",
    "report_to": ["comet"], "dataset": "elsewhere",
}  # fmt: skip


def other(name: str, value: Any) -> Any:
    if name in OTHERS:
        return OTHERS[name]
    return not value if isinstance(value, bool) else f"{value}2" if isinstance(value, str) else 11


@pytest.mark.parametrize("given", [LLAMAFACTORY, SWIFT], ids=["llamafactory", "swift"])
def test_no_key_is_lost(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is changed changes the script: its commands, or its list of what has no place."""
    for step in ("compose", "bind_targets"):
        monkeypatch.setattr(f"aqaa.runtime.import_config.{step}", lambda *_: None)

    def script(**more: Any) -> str:
        Path("train.yaml").write_text(yaml.safe_dump({**given, **more}))
        import_config(file="train.yaml", out="train.sh")
        return Path("train.sh").read_text()

    as_it_is = script()
    lost = [n for n, value in given.items() if script(**{n: other(n, value)}) == as_it_is]
    assert lost == []
    assert unmapped(script(never_heard_of=3))["never_heard_of"] == "3  (no such setting here)"


@pytest.mark.parametrize(
    ("named", "stage", "offload"),
    [("zero2", 2, "none"), ("examples/deepspeed/ds_z2_offload_config.json", 2, "optimizer"),
     ("ds_z3_config.json", 3, "none"), ("zero3_offload", 3, "all"), ("mine_v2.json", 3, "none")],
)  # fmt: skip
def test_the_name_of_a_deepspeed_config_tells_its_stage(
    named: str, stage: int, offload: str
) -> None:
    keys = Keys({"deepspeed": named}, "swift")
    found = trainer_settings(keys)
    assert (found["trainer.strategy.stage"], found["trainer.strategy.offload"]) == (stage, offload)
    assert ("deepspeed" in keys.rest()) == (named == "mine_v2.json")


@pytest.mark.parametrize("kind", DEFAULTS)
def test_what_is_not_written_is_what_they_assume(kind: str) -> None:
    bare: dict[str, Any] = {"model_name_or_path": "m", "cutoff_len": 5, "max_steps": 9}
    if kind == "swift":
        bare = {"model": "m", "max_length": 5, "max_steps": 9}
    cfg, *_ = written(bare)
    default = DEFAULTS[kind]
    assert cfg.optim.lr == default.get("learning_rate", 1e-4)
    assert cfg.optim.betas == [default["adam_beta1"], default["adam_beta2"]]
    assert cfg.trainer.accumulate_grad_batches == default["gradient_accumulation_steps"]
    assert cfg.adapter.rank == 8 and cfg.adapter.alpha == default.get("lora_alpha", 16)


def test_it_is_printed_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("train.json").write_text(json.dumps(SWIFT))
    import_config(file="train.json")
    said = capsys.readouterr().out
    assert said.startswith("#!/usr/bin/env bash\n# What train.json asks of swift")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "is no YAML"),
        ("- a", "does not hold the settings of a training"),
        ("seed: 1", "may be of either: say reads=llamafactory"),
        ("stage: ppo", "there is no stage ppo here; there are pt, sft, dpo"),
        ("rlhf_type: grpo", "there is no stage grpo here"),
    ],
)
def test_errors_of_use_are_one_sentence(text: str, sentence: str) -> None:
    Path("train.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        import_config(file="train.yaml", out="train.sh")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("train.sh").exists()
    with pytest.raises(UsageError, match="does not exist"):
        import_config(file="nowhere.yaml")
