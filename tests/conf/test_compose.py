"""Every YAML is a test case: each root with each option of each group and each preset.

Each composition passes the allow-list and has its targets bound to their real signatures.
"""

from functools import cache

import pytest

from aqaa.runtime import catalogue
from aqaa.runtime.compose import bind_targets, compose
from aqaa.runtime.verbs import VERBS

CONF = catalogue.conf_dir()
CONFIGURED = [verb.name for verb in VERBS.values() if verb.configured]
ROOTS = [verb for verb in CONFIGURED if (CONF / f"{catalogue.root_name(verb)}.yaml").is_file()]


@cache
def cases() -> list[tuple[str, str]]:
    """(verb, override) of every option and preset that a verb can be given, and of none."""
    found = []
    for verb in ROOTS:
        found.append((verb, ""))
        for group, default in catalogue.groups(verb).items():
            known = catalogue.fitting(verb, group)
            found += [(verb, f"{group}={option}") for option in known if option != default]
    return found


@pytest.mark.parametrize(("verb", "override"), cases())
def test_it_composes_and_binds(verb: str, override: str) -> None:
    cfg = compose(verb, [override] if override else [], allow_missing=True)
    bind_targets(cfg)


def test_every_verb_has_a_root_and_every_root_a_verb() -> None:
    assert {p.stem for p in CONF.glob("*.yaml")} == set(map(catalogue.root_name, CONFIGURED))


def test_no_preset_or_option_is_unused() -> None:
    chosen = {override for _, override in cases()}
    defaults = {f"{g}={o}" for verb in ROOTS for g, o in catalogue.groups(verb).items()}
    files = {p.relative_to(CONF) for p in CONF.rglob("*.yaml") if p.parent != CONF}
    groups = {group for verb in ROOTS for group in catalogue.groups(verb)}
    every = {f"{g}={option}" for g in groups for option in catalogue.options(g)}
    assert every <= chosen | defaults
    assert {f.parts[0] for f in files} <= {group.split("/")[0] for group in groups}


@pytest.mark.parametrize("verb", ROOTS)
def test_the_defaults_end_in_self_preset_debug(verb: str) -> None:
    root = (CONF / f"{catalogue.root_name(verb)}.yaml").read_text("utf-8")
    lines = [line.strip("- ") for line in root.splitlines() if line.strip().startswith("- ")]
    order = [line.split(":")[0] for line in lines]
    # Later wins: the root's own values, then a preset's, then those of debug.
    last = [name for name in ("_self_", "preset", "debug") if name in order]
    assert order[len(order) - len(last) :] == last


@pytest.mark.parametrize("verb", ROOTS)
def test_no_key_of_a_root_is_named_like_a_group(verb: str) -> None:
    # Hydra would read `key=value` as a choice of group.
    folders = {p.name for p in CONF.iterdir() if p.is_dir()} - set(catalogue.groups(verb))
    assert not folders & {name.split(".")[0] for name in catalogue.keys(verb)}


@pytest.mark.parametrize("verb", ROOTS)
def test_the_positional_is_a_key(verb: str) -> None:
    positional = VERBS[verb].positional
    assert positional is None or positional in catalogue.keys(verb)


@pytest.mark.parametrize("verb", ROOTS)
def test_the_example_composes(verb: str) -> None:
    import shlex

    from aqaa.cli import main

    words = shlex.split(VERBS[verb].example)
    assert words[0] == "aqaa"
    assert main([*words[1:], "--cfg", "job"]) == 0
