"""Which ``_target_`` a config may name and whether its keywords fit, before anything is built.

Configs travel (presets, run folders, checkpoints), and a target is code to be run: only our own
public names and a short list of classes of torch and lightning pass.
"""

import ast
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from aqaa.errors import UsageError

PREFIX = "aqaa."
NAMED = frozenset(
    {
        "torch.optim.AdamW",
        "torch.optim.SGD",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.loggers.WandbLogger",
        "lightning.pytorch.profilers.SimpleProfiler",
        "lightning.pytorch.profilers.PyTorchProfiler",
    }
)
_HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
_SIMPLE = {int, float, bool, str, type(None)}


def check_targets(cfg: Any) -> None:
    """Refuse a config that names any target outside the allow-list; imports nothing.

    Args:
        cfg: a DictConfig, or plain dicts and lists; walked whole, interpolations resolved.

    Raises:
        UsageError: with the YAML path and the target.
    """
    for where, node in _targets(_plain(cfg)):
        target = node["_target_"]
        if not isinstance(target, str):
            raise UsageError(f"{where}._target_ is {target!r}, not a dotted name")
        if target not in NAMED and not _is_ours(target):
            raise UsageError(
                f"{where}._target_ = {target} is refused: a target is a public function or class "
                f"defined in aqaa, or one of {', '.join(sorted(NAMED))}"
            )


def bind_targets(cfg: Any) -> None:
    """Bind the keywords of every target, partial or not, to its real signature.

    Hydra lets a wrong keyword under ``_partial_`` pass until the network is built, on a cluster
    after the queue; here it is found at once. Simple annotations of our own targets are checked
    against the values too.

    Raises:
        UsageError: with the YAML path and the keyword that does not fit.
    """
    check_targets(cfg)
    for where, node in _targets(_plain(cfg)):
        _bind(where, node)


def _plain(cfg: Any) -> Any:
    """Plain dicts and lists, interpolations resolved; a mandatory value left open stays ``???``."""
    if isinstance(cfg, (dict, list, tuple)):
        return cfg
    from omegaconf import DictConfig, ListConfig, OmegaConf
    from omegaconf.errors import (
        InterpolationToMissingValueError,
        MissingMandatoryValue,
        OmegaConfBaseException,
    )

    def value(node: Any, key: Any) -> Any:
        try:
            return plain(node[key])
        except (MissingMandatoryValue, InterpolationToMissingValueError):
            return "???"
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"a config value cannot be resolved: {reason}") from None

    def plain(node: Any) -> Any:
        if OmegaConf.is_config(node) and (node._is_none() or node._is_missing()):
            return None if node._is_none() else "???"
        if isinstance(node, DictConfig):
            return {key: value(node, key) for key in node}
        if isinstance(node, ListConfig):
            return [value(node, index) for index in range(len(node))]
        return node

    return plain(cfg)


def _targets(node: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield where or "config", node
        for key, value in node.items():
            yield from _targets(value, f"{where}.{key}".lstrip("."))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _targets(value, f"{where}[{index}]")


def _is_ours(target: str) -> bool:
    """Whether a dotted name is a public def or class written in an aqaa module (or its method)."""
    parts = target.split(".")
    if not target.startswith(PREFIX) or any(not p.isidentifier() or p[0] == "_" for p in parts):
        return False
    folder = Path(__file__).resolve().parent.parent
    for count in range(len(parts) - 1, 0, -1):
        module = folder.joinpath(*parts[1:count])
        for path in (module.with_suffix(".py"), module / "__init__.py"):
            if path.is_file() and path != folder / "__init__.py":
                return _is_defined(path, tuple(parts[count:]))
    return False


@cache
def _is_defined(path: Path, names: tuple[str, ...]) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for index, name in enumerate(names):
        found = [
            n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name
        ]
        if not found:
            return False
        last = index == len(names) - 1
        if not last and not isinstance(found[-1], ast.ClassDef):
            return False
        body = found[-1].body
    return True


def _locate(target: str) -> Callable[..., Any]:
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError:  # a class method: one attribute further
        owner, _, attribute = module.rpartition(".")
        return getattr(getattr(import_module(owner), attribute), name)


def _bind(where: str, node: Mapping[str, Any]) -> None:
    target = node["_target_"]
    function = _locate(target)
    signature = inspect.signature(function)
    given = {key: value for key, value in node.items() if key not in _HYDRA_KEYS}
    bind = signature.bind_partial if node.get("_partial_") else signature.bind
    try:
        bind(*node.get("_args_", ()), **given)
    except TypeError as error:
        raise UsageError(_unfit(where, target, signature, given, str(error))) from None
    if target.startswith(PREFIX):
        _check_values(where, function, given)


def _unfit(
    where: str, target: str, signature: inspect.Signature, given: Mapping[str, Any], error: str
) -> str:
    for key in given:
        if key not in signature.parameters:
            return f"{where}.{key} does not fit: {target} takes {', '.join(signature.parameters)}"
    return f"{where} does not fit {target}: {error}"


def _check_values(where: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    owner = function.__init__ if inspect.isclass(function) else function
    try:
        hints = typing.get_type_hints(owner)
    except (NameError, TypeError):
        return  # names known to a type checker only
    for key, value in given.items():
        if key in hints and value != "???" and not _suits(value, hints[key]):
            wanted = getattr(hints[key], "__name__", str(hints[key]))
            raise UsageError(f"{where}.{key} = {value!r} does not fit: it must be {wanted}")


def _suits(value: Any, hint: Any) -> bool:
    """Whether a value suits a simple annotation; anything that is not simple passes."""
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_suits(value, member) for member in typing.get_args(hint))
    if hint not in _SIMPLE:
        return True
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is float:
        return isinstance(value, (int, float))
    return isinstance(value, hint)
