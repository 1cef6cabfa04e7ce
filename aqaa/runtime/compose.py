"""A verb and its overrides become one config; every error of use is one sentence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aqaa.errors import UsageError
from aqaa.runtime import budget, catalogue
from aqaa.runtime.catalogue import conf_dir
from aqaa.runtime.targets import bind_targets, check_targets

__all__ = ["bind_targets", "check_targets", "compose", "conf_dir"]

budget.register()


def compose(
    verb: str,
    overrides: Sequence[str] = (),
    *,
    allow_missing: bool = False,
    conf: Path | None = None,
) -> DictConfig:
    """The composed config of a verb.

    Args:
        verb: ``sft``, ``data synthesize``, …; its root file has the same name.
        overrides: ``key=value``, ``group=option``, ``preset=name``; values given here beat presets.
        allow_missing: leave mandatory values (``???``) open, to look at a config only.
        conf: another configuration folder than :func:`conf_dir`'s.

    Raises:
        UsageError: unknown key or option, a preset of another verb, a mandatory value left open.
    """
    conf = (conf or conf_dir()).resolve()
    parsed = _parse(overrides)
    choices = {o.key_or_group: str(o.value()) for o in parsed if _is_choice(o, conf)}
    _check_choices(verb, choices, conf)
    cfg = _hydra(verb, overrides, parsed, choices, conf)
    budget.check(cfg)
    missing = _missing(OmegaConf.to_container(cfg, resolve=False))
    if missing and not allow_missing:
        raise UsageError(
            f"{verb} needs {' and '.join(f'{key}=…' for key in missing)} "
            f"(aqaa {verb} --help shows an example)"
        )
    return cfg


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            raise UsageError(
                f"cannot read {text!r}: write key=value, and put a value with special characters "
                f"in quotes of its own, \"key='value'\""
            ) from None
        if override.is_sweep_override():
            raise UsageError(f"{text!r} is a list of runs: give one value at a time")
        parsed.append(override)
    return parsed


def _is_choice(override: Override, conf: Path) -> bool:
    return (conf / override.key_or_group).is_dir() and isinstance(
        override.value(), (str, type(None))
    )


def _check_choices(verb: str, choices: dict[str, str], conf: Path) -> None:
    known = catalogue.groups(verb, conf)
    for group, option in choices.items():
        if group not in known:
            raise UsageError(f"{verb} has no group {group}: it has {_listed(known)}")
        if option == "None":
            continue
        if option not in catalogue.options(group, conf):
            available = catalogue.fitting(verb, group, conf)
            # What runs anywhere comes before what wants a cluster.
            available.sort(key=lambda name: name.startswith("paper/"))
            near = catalogue.nearest(option, available)
            hint = f"the nearest is {near}; " if near else ""
            raise UsageError(
                f"{group} has no option {option}: {hint}for {verb} there are {_listed(available)}"
            )
    for group, option in choices.items():
        if option != "None":
            _check_fit(verb, group, option, choices, conf)


def _check_fit(verb: str, group: str, option: str, choices: dict[str, str], conf: Path) -> None:
    """A preset may only set, and an option only refer to, what the verb has."""
    if group in catalogue.GLOBAL_GROUPS:
        others = {g: o for g, o in choices.items() if g not in catalogue.GLOBAL_GROUPS}
        reason = catalogue.misfit(verb, group, option, others, conf)
    else:
        reason = catalogue.unmet(verb, group, option, conf)
    if reason:
        fitting = _listed(catalogue.fitting(verb, group, conf))
        raise UsageError(
            f"{group} {option} is not for {verb}: {reason}; for {verb} there are {fitting}"
        )


def _hydra(
    verb: str,
    overrides: Sequence[str],
    parsed: list[Override],
    choices: dict[str, str],
    conf: Path,
) -> DictConfig:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
            return hydra_compose(catalogue.root_name(verb), list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        known = [*catalogue.keys(verb, _all_choices(verb, choices, conf), conf)]
        for group in catalogue.GLOBAL_GROUPS:
            if choices.get(group, "None") != "None":
                known += catalogue.leaves(group, choices[group], conf)
        known += catalogue.groups(verb, conf)
        raise UsageError(_explain(verb, parsed, choices, known, error)) from None


def _all_choices(verb: str, choices: dict[str, str], conf: Path) -> dict[str, str | None]:
    """Groups as the presets and then the command line choose them."""
    chosen: dict[str, str | None] = {}
    for group in catalogue.GLOBAL_GROUPS:
        if choices.get(group, "None") != "None":
            chosen |= catalogue.overridden(group, choices[group], conf)
    return chosen | {g: None if o == "None" else o for g, o in choices.items()}


def _explain(
    verb: str,
    parsed: list[Override],
    choices: dict[str, str],
    known: list[str],
    error: Exception,
) -> str:
    branches = {
        name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)
    }
    names = [*known, *sorted(branches)]
    for override in parsed:
        key = override.key_or_group
        if key in names or key in choices or override.is_add() or override.is_force_add():
            continue
        near = catalogue.nearest(key, names)
        hint = f"the nearest is {near}" if near else f"it has {_listed(known[:8])} …"
        return f"{verb} has no key {key}: {hint} (aqaa {verb} --help lists all)"
    first = " ".join(line.strip() for line in str(error).splitlines()[:2])
    return f"the configuration of {verb} cannot be composed: {first}"


def _missing(node: Any, name: str = "") -> list[str]:
    """Names of the mandatory values left open; those that only refer to them are not named."""
    if isinstance(node, dict):
        return [n for key, v in node.items() for n in _missing(v, f"{name}.{key}".lstrip("."))]
    if isinstance(node, list):
        return [n for index, v in enumerate(node) for n in _missing(v, f"{name}[{index}]")]
    return [name] if node == "???" else []


def _listed(names: Any) -> str:
    return ", ".join(names) or "none"
