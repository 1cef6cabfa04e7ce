"""Which ``_target_`` a config may name and whether its keywords fit, before anything is built.

Configs travel (presets, run folders, checkpoints), and a target is code to be run. So there are two
lists of names and nothing else passes: what a verb runs, at the root of its config alone, and what
it is built from, below the root alone. A function that writes or removes files can thus never hide
inside the config of another verb. To use a class of your own in a config, add its name to PARTS.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from aqaa.errors import UsageError

PREFIX = "aqaa."
COMMANDS = frozenset(
    {
        "aqaa.answer.answer",
        "aqaa.answer.bundle",
        "aqaa.backbone.initial.initialise",
        "aqaa.data.convert.convert",
        "aqaa.data.synthesize.synthesize",
        "aqaa.data.tokenize.tokenize",
        "aqaa.data.validate.check",
        "aqaa.evaluation.books.report",
        "aqaa.evaluation.evaluate.evaluate",
        "aqaa.evaluation.pairs.pairs",
        "aqaa.release.bring_in.bring_in",
        "aqaa.runtime.ablations.ablations",
        "aqaa.runtime.export.export",
        "aqaa.runtime.import_config.import_config",
        "aqaa.runtime.listening.listen",
        "aqaa.runtime.planner.plan",
        "aqaa.runtime.replay.replay",
        "aqaa.runtime.walkthrough.walkthrough",
        "aqaa.stages.merge.merge",
    }
)
PARTS = frozenset(
    {
        "aqaa.backbone.lora.Lora",
        "aqaa.data.augment.Augmentation",
        "aqaa.data.dialogues.DialogueBatches",
        "aqaa.data.hearing.HeardBatches",
        "aqaa.data.preferences.PreferenceBatches",
        "aqaa.data.speech.SpeechBatches",
        "aqaa.data.token_voice.SoundBatches",
        "aqaa.data.token_voice.TokenFlowBatches",
        "aqaa.data.voice.FlowBatches",
        "aqaa.data.voice.WaveformBatches",
        "aqaa.runtime.hearing.HearAnswers",
        "aqaa.runtime.strategy.ShardedStrategy",
        "aqaa.stages.adversarial.Adversarial",
        "aqaa.stages.dpo.Dpo",
        "aqaa.stages.optimizer.OptimizerSettings",
        "aqaa.stages.pretrain.Pretrain",
        "aqaa.stages.sft.Sft",
        "aqaa.stages.token_flow.TokenFlowTraining",
        "aqaa.stages.tokenizer.Tokenizer",
        "aqaa.stages.vocoder.Flow",
        "aqaa.stages.vocoder.Waveform",
        "aqaa.tokenizer.learner.LinguisticLearner",
        "aqaa.tokenizer.learner.SemanticLearner",
        "aqaa.tokenizer.speech_tokenizer.SpeechTokenizer",
        "aqaa.vocoder.discriminators.Discriminators",
        "aqaa.vocoder.flow.FlowVocoder",
        "aqaa.vocoder.hift.Hift",
        "aqaa.vocoder.token_flow.TokenFlow",
        "aqaa.vocoder.waveform.WaveformHead",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.loggers.WandbLogger",
        "lightning.pytorch.profilers.PyTorchProfiler",
        "lightning.pytorch.profilers.SimpleProfiler",
    }
)
_HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
_SIMPLE = {int, float, bool, str, type(None)}


def check_targets(cfg: Any) -> None:
    """Refuse a config that names any target outside the lists; imports nothing.

    Args:
        cfg: a DictConfig, or plain dicts and lists; walked whole, interpolations resolved.

    Raises:
        UsageError: with the YAML path and the target.
    """
    for where, node in _targets(_plain(cfg)):
        target = node["_target_"]
        if not isinstance(target, str):
            raise UsageError(f"{where or 'config'}._target_ is {target!r}, not a dotted name")
        if target in (PARTS if where else COMMANDS):
            continue
        if target in PARTS | COMMANDS:
            place = "below a verb's root" if where else "at the root of a verb's config"
            raise UsageError(f"{where or 'config'}._target_ = {target} is refused {place}")
        raise UsageError(
            f"{where or 'config'}._target_ = {target} is refused: it is not among the names that "
            f"aqaa/runtime/targets.py lists"
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
        _bind(where or "config", node)


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
            yield where, node
        for key, value in node.items():
            yield from _targets(value, f"{where}.{key}".lstrip("."))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _targets(value, f"{where}[{index}]")


def _locate(target: str) -> Callable[..., Any]:
    module, _, name = target.rpartition(".")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


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
