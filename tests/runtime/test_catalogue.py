"""What conf/ offers, read without Hydra, and that Hydra agrees."""

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from aqaa.errors import UsageError
from aqaa.runtime import catalogue
from aqaa.runtime.compose import compose


def test_groups_options_and_the_presets_that_fit(conf: Path) -> None:
    assert catalogue.groups("sft", conf)["adapter"] == "none"
    assert catalogue.options("preset", conf) == ["codes", "paper/sft_1"]
    assert catalogue.fitting("sft", conf=conf) == ["paper/sft_1"]
    assert catalogue.fitting("tokenizer", conf=conf) == ["codes"]
    assert catalogue.misfit("tokenizer", "preset", "paper/sft_1", conf=conf) == (
        "it is written for sft"
    )
    assert catalogue.misfit("sft", "preset", "codes", conf=conf) == "it sets codes, which sft lacks"


def test_keys_carry_defaults_and_notes(conf: Path) -> None:
    keys = catalogue.keys("sft", conf=conf)
    assert keys["run.name"].value == "sft"
    assert (keys["sampling.temperature"].value, keys["sampling.temperature"].note) == (
        "0.7",
        "of the answers",
    )
    assert keys["adapter"].value == ""
    assert "adapter.rank" in catalogue.keys("sft", {"adapter": "lora"}, conf)


@pytest.mark.parametrize("trainer", ["cpu", "zero3_nodes"])
def test_keys_are_those_hydra_composes(conf: Path, trainer: str) -> None:
    cfg = compose("sft", [f"trainer={trainer}"], conf=conf)
    listed = {n for n in catalogue.keys("sft", {"trainer": trainer}, conf) if n != "adapter"}
    composed = set(_leaves(OmegaConf.to_container(cfg)))
    assert listed == composed


def _leaves(node: object, name: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [name]
    inner = [
        _leaves(v, f"{name}.{k}".lstrip(".")) for k, v in node.items() if not k.startswith("_")
    ]
    return [leaf for leaves in inner for leaf in leaves]


def test_the_nearest_name() -> None:
    names = ["optim.lr", "optim.weight_decay", "run.seed"]
    assert catalogue.nearest("lr", names) == "optim.lr"
    assert catalogue.nearest("optim.wieght_decay", names) == "optim.weight_decay"
    assert catalogue.nearest("sede", names) == "run.seed"
    assert catalogue.nearest("zzzzzz", names) is None
    assert catalogue.nearest("h100", ["a100-80", "h100-80", "h200"]) == "h100-80"


def test_broken_yaml_is_named(conf: Path) -> None:
    (conf / "sft.yaml").write_text("a: [1\n")
    with pytest.raises(UsageError, match="sft.yaml is not valid YAML"):
        catalogue.groups("sft", conf)


def test_a_folder_without_conf_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "__file__", str(tmp_path / "aqaa" / "runtime" / "catalogue.py"))
    with pytest.raises(UsageError, match="no conf folder"):
        catalogue.conf_dir()


def test_looking_does_not_import_hydra() -> None:
    import subprocess

    code = "import aqaa.runtime.catalogue, sys; sys.exit('hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_preset_that_shows_no_command_is_judged_by_what_it_sets(conf: Path) -> None:
    preset = conf / "preset" / "paper" / "sft_1.yaml"
    preset.write_text(preset.read_text().replace("# aqaa sft preset=paper/sft_1\n", ""))
    reason = catalogue.misfit("tokenizer", "preset", "paper/sft_1", conf=conf)
    assert reason == "it chooses adapter, a group that tokenizer lacks"


def test_keys_beside_a_target_that_a_preset_names_are_for_that_target(conf: Path) -> None:
    preset = conf / "preset" / "other.yaml"
    lacks = "it sets optim.strange, which sft lacks"
    for target, reason in (("", lacks), ("  _target_: a.B\n", None)):
        preset.write_text(f"# @package _global_\noptim:\n{target}  strange: 1\n")
        assert catalogue.misfit("sft", "preset", "other", conf=conf) == reason
