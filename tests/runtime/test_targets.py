"""The allow-list of targets and the binding of their keywords."""

import sys

import pytest
from omegaconf import OmegaConf

from aqaa.errors import UsageError
from aqaa.runtime.targets import bind_targets, check_targets


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "torch.load",
        "torch.hub.load",
        "builtins.eval",
        "aqaa",
        "aqaa.",
        "aqaa.storage",
        "aqaa.storage.os.system",  # a module's own imports are not its names
        "aqaa.storage.shutil.rmtree",
        "aqaa.storage.UsageError",
        "aqaa.storage.MANIFEST",
        "aqaa.storage._sync",
        "aqaa.storage.write_text.__globals__",
        "aqaa.text.TextTokenizer.__init__",
        "aqaa.text.TextTokenizer._tokenizer",
        "aqaa.absent.thing",
        "aqaa..storage.write_text",
        "aqaa/storage.write_text",
        "aqaaa.storage.write_text",
        "torch.optim.AdamW.step",
        "",
    ],
)
def test_targets_outside_the_list_are_refused(target: str) -> None:
    with pytest.raises(UsageError, match="is refused"):
        check_targets({"_target_": target})


@pytest.mark.parametrize(
    "target", ["aqaa.storage.write_text", "aqaa.text.TextTokenizer.load", "torch.optim.AdamW"]
)
def test_our_own_names_and_the_named_ones_pass(target: str) -> None:
    check_targets({"_target_": target, "_partial_": True})


def test_the_whole_tree_is_walked_and_interpolations_resolved() -> None:
    bad = {"_target_": "os.system", "_partial_": True}
    for cfg in (
        {"a": {"b": [{"c": 1}, {"d": bad}]}},
        {"_target_": "aqaa.storage.write_text", "path": {"deep": bad}},
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
        "check_targets({'_target_': 'aqaa.text.TextTokenizer'});"
        "sys.exit('aqaa.text' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_wrong_keywords_are_found_with_their_path_also_in_partials() -> None:
    write = {"_target_": "aqaa.storage.write_text", "path": "a", "text": "b"}
    bind_targets({"x": write})
    bind_targets({"x": {"_target_": "aqaa.storage.write_text", "_partial_": True}})
    with pytest.raises(
        UsageError, match=r"x\.txt does not fit: aqaa.storage.write_text takes path, text"
    ):
        bind_targets({"x": {**write, "txt": 1}})
    with pytest.raises(UsageError, match=r"x\.txt does not fit"):
        bind_targets({"x": {**write, "txt": 1, "_partial_": True}})
    with pytest.raises(UsageError, match=r"x does not fit .*missing a required argument: 'text'"):
        bind_targets({"x": {"_target_": "aqaa.storage.write_text", "path": "a"}})
    with pytest.raises(UsageError, match=r"x\.text = 3 does not fit: it must be str"):
        bind_targets({"x": {**write, "text": 3}})
    with pytest.raises(UsageError, match="lrr does not fit"):
        bind_targets({"optim": {"_target_": "torch.optim.AdamW", "_partial_": True, "lrr": 1.0}})
    bind_targets({"x": {"_target_": "aqaa.text.TextTokenizer.load", "folder": "a"}})


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("text_tokens", 5, True),
        ("text_tokens", "many", False),
        ("text_tokens", 5.5, False),
        ("text_tokens", True, False),
        ("text_tokens", "???", True),
    ],
)
def test_simple_annotations_are_checked(key: str, value: object, fits: bool) -> None:
    node = {"_target_": "aqaa.vocabulary.Vocabulary", key: value}
    if fits:
        bind_targets(node)
    else:
        with pytest.raises(UsageError, match="it must be int"):
            bind_targets(node)
