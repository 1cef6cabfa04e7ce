"""The allow-list of targets and the binding of their keywords."""

import re
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from aqaa import cli
from aqaa.errors import UsageError
from aqaa.runtime.catalogue import conf_dir
from aqaa.runtime.targets import COMMANDS, PARTS, bind_targets, check_targets

ROOT = Path(__file__).resolve().parents[2]


PARTIAL = {"_target_": "aqaa.stages.optimizer.OptimizerSettings", "_partial_": True}
# Code that a config could reach by name: what probes of Hydra found let through, what it refuses
# itself, and functions of our own that write, remove or run.
DANGEROUS = (
    "os.system", "subprocess.Popen", "subprocess.check_output", "builtins.eval", "builtins.exec",
    "builtins.__import__", "importlib.import_module", "pickle.loads", "runpy.run_module",
    "torch.load", "torch.hub.load", "timeit.timeit", "code.InteractiveInterpreter", "pydoc.locate",
    "operator.attrgetter", "functools.reduce", "shutil.rmtree", "pathlib.Path.unlink", "numpy.load",
    "platform.popen", "webbrowser.open", "ctypes.CDLL", "doctest.testsource",
    "multiprocessing.Process", "asyncio.create_subprocess_shell", "hydra.utils.instantiate",
    "aqaa.storage.write_text", "aqaa.storage.atomic_folder", "aqaa.storage.shutil.rmtree",
    "aqaa.audio.torchaudio_shim.ensure", "aqaa.runtime.schedule.Schedule", "aqaa.cli.main",
    "aqaa.runtime.command.perform", "aqaa.runtime.run.train", "aqaa.text.TextTokenizer.load",
)  # fmt: skip
# Places in which a target can hide on the command line of a stage.
HIDING = {
    "nested": ["+x.y.z._target_={t}"],
    "partial": ["+x={{_target_: {t}, _partial_: true}}"],
    "list": ["+x=[1,{{a: [{{_target_: {t}}}]}}]"],
    "args": ["+data._args_=[{{_target_: {t}}}]"],
    "interpolated": ["+x.name={t}", "+x.call._target_=${{x.name}}"],
    "joined": ["+x.name={t}", "+x.call._target_=${{x.head}}${{x.name}}", "+x.head=''"],
    "node": ["+x.inner={{_target_: {t}}}", "+y=${{x.inner}}"],
    "made": ["+x='${{oc.create:{{_target_: {t}}}}}'"],
    "decoded": ["+x='${{oc.decode:\"{{_target_: {t}}}\"}}'"],
    "instead": ["stage._target_={t}"],
    "beside": ["+trainer.callbacks=[{{_target_: {t}}}]"],
    "root": ["+_target_={t}"],
}


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would build or train raises."""
    import hydra.utils

    from aqaa.runtime import run

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was built")

    monkeypatch.setattr(run, "train", never)
    monkeypatch.setattr(hydra.utils, "instantiate", never)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("target", "place"),
    [(t, list(HIDING)[i % len(HIDING)]) for i, t in enumerate(DANGEROUS)]
    + [("torch.hub.load", place) for place in HIDING]
)
def test_no_probe_gets_through_the_command_line(
    target: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(t=target) for word in HIDING[place]]
    for more in ([], ["--cfg", "job"])[: 1 + (target == "torch.hub.load")]:
        assert cli.main(["sft", "preset=walkthrough/sft_1", *words, *more]) == 2
        streams = capsys.readouterr()
        assert f"{target} is refused" in streams.err and not streams.out


@pytest.mark.usefixtures("nothing_runs")
def test_a_verb_does_not_hide_inside_another(capsys: pytest.CaptureFixture[str]) -> None:
    for words, place in (
        (["sft", "preset=walkthrough/sft_1", "+x._target_=aqaa.stages.merge.merge"], "x._target_"),
        (["merge", "weights.0={_target_: aqaa.stages.merge.merge}"], "weights"),
        (["merge", "_target_=aqaa.stages.sft.Sft"], "config._target_"),
    ):
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert place in said and "is refused" in said or "cannot be composed" in said


@pytest.mark.usefixtures("nothing_runs")
def test_a_preset_from_elsewhere_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = tmp_path / "optim" / "evil.yaml"
    evil.parent.mkdir()
    evil.write_text("_target_: os.system\n")
    words = [f"hydra.searchpath=[file://{tmp_path}]", "optim=evil"]
    assert cli.main(["sft", "preset=walkthrough/sft_1", *words]) == 2
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "target", ["", "aqaa", "aqaa.", "os.system ", "aqaa.stages.sft.Sft.export", "aqaa.stages.Sft"]
)
def test_names_that_are_nearly_right_are_refused(target: str) -> None:
    with pytest.raises(UsageError, match="is refused"):
        check_targets({"x": {"_target_": target}})


def test_the_lists_are_what_the_configuration_names() -> None:
    named: dict[bool, set[str]] = {True: set(), False: set()}
    for path in conf_dir().rglob("*.yaml"):
        for line in path.read_text("utf-8").splitlines():
            if found := re.match(r"( *)_target_: ([\w.]+)", line):
                at_root = path.parent == conf_dir() and not found[1]
                named[at_root].add(found[2])
    assert named[True] == COMMANDS
    kinds = ("lightning.pytorch.loggers.", "lightning.pytorch.profilers.")  # a user's to choose
    assert {t for t in PARTS if not t.startswith(kinds)} == {
        t for t in named[False] if not t.startswith(kinds)
    }


def test_configs_that_were_saved_never_come_back_as_configs() -> None:
    """What reads a saved config builds nothing from it; few files build from a config."""
    builders, readers = set(), set()
    for path in (ROOT / "aqaa").rglob("*.py"):
        text = path.read_text("utf-8")
        assert not re.search(r"hydra\.utils\.(call|get_)|get_(class|method)\(", text)
        if re.search(r"OmegaConf\.load|yaml\.(safe_)?load", text):
            readers.add(path.name)
        if re.search(r"\binstantiate\b|import_module\(", text):
            builders.add(path.name)
    makers = {"command.py", "run.py", "measured_step.py"}
    assert builders == {*makers, "targets.py", "doctor.py", "torchaudio_shim.py"}
    assert readers == {"replay.py", "import_config.py"} and not readers & builders


def test_the_whole_tree_is_walked_and_interpolations_resolved() -> None:
    bad = {"_target_": "os.system", "_partial_": True}
    for cfg in (
        {"a": {"b": [{"c": 1}, {"d": bad}]}},
        {"x": {**PARTIAL, "path": {"deep": bad}}},
        {"kind": "os.system", "call": {"_target_": "${kind}"}},
        {"part": "tem", "call": {"_target_": "os.sys${part}"}},
        [[bad]],
    ):
        with pytest.raises(UsageError, match="os.system is refused"):
            check_targets(OmegaConf.create(cfg))
    with pytest.raises(UsageError, match=r"a\.b\[0\]\._target_"):
        check_targets({"a": {"b": [bad]}})
    with pytest.raises(UsageError, match="not a dotted name"):
        check_targets({"_target_": print})
    check_targets(OmegaConf.create({"a": "???", "b": "${a}", "c": {"d": "${b}", "e": None}}))
    with pytest.raises(UsageError, match="cannot be resolved"):
        check_targets(OmegaConf.create({"_target_": "${absent}"}))


def test_checking_imports_nothing() -> None:
    import subprocess

    code = (
        "import sys; from aqaa.runtime.targets import check_targets;"
        "check_targets({'x': {'_target_': 'aqaa.stages.sft.Sft'}});"
        "sys.exit('aqaa.stages' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_wrong_keywords_are_found_with_their_path_also_in_partials() -> None:
    name = "aqaa.data.augment.Augmentation"
    bind_targets({"x": {"_target_": name, "_partial_": True}})
    bind_targets({"x": {**PARTIAL, "lr": 1.0}})
    with pytest.raises(UsageError, match=r"x\.lrr does not fit: aqaa.stages.optimizer.*takes lr, "):
        bind_targets({"x": {**PARTIAL, "lrr": 1.0}})
    whole = {"_target_": PARTIAL["_target_"]}
    with pytest.raises(UsageError, match=r"x does not fit .*missing a required argument: 'lr'"):
        bind_targets({"x": whole})
    with pytest.raises(UsageError, match=r"x\.lr = 'high' does not fit: it must be float"):
        bind_targets({"x": {**whole, "lr": "high"}})
    with pytest.raises(UsageError, match=r"config\.otu does not fit"):
        bind_targets({"_target_": "aqaa.stages.merge.merge", "otu": "a"})


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("warmup_steps", 5, True),
        ("warmup_steps", "many", False),
        ("warmup_steps", 5.5, False),
        ("warmup_steps", True, False),
        ("warmup_steps", "???", True),
    ],
)
def test_simple_annotations_are_checked(key: str, value: object, fits: bool) -> None:
    node = {"x": {**PARTIAL, key: value}}
    if fits:
        bind_targets(node)
    else:
        with pytest.raises(UsageError, match="it must be int"):
            bind_targets(node)
