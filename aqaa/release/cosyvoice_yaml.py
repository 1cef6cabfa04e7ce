"""The few numbers of a cosyvoice.yaml that no tensor can tell; its tags are read as plain data.

Such a file names classes to import and call (``!new:``, ``!name:``, ``!apply:``). None is: a tag is
dropped, and what stands below it is taken as the mapping, list or word that it is.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aqaa.errors import UsageError
from aqaa.signals import VOCODER_RATE_HZ
from aqaa.vocoder.token_flow import TOKEN_RATE_HZ

_REFERENCE = re.compile(r"<([\w.]+)>")


class _Plain(yaml.SafeLoader):
    """Safe, and deaf to tags."""


def _untagged(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)


_Plain.add_multi_constructor("!", _untagged)


@dataclass(frozen=True)
class VocoderNumbers:
    """Rates, heads and guidance of a vocoder; defaults are those of CosyVoice's recipe."""

    token_rate_hz: float = TOKEN_RATE_HZ
    rate_hz: int = VOCODER_RATE_HZ
    encoder_heads: int = 8
    unet_heads: int = 8
    guidance: float = 0.7

    @classmethod
    def read(cls, path: str | Path) -> "VocoderNumbers":
        """Read the file.

        Raises:
            UsageError: it is missing or damaged, describes no flow, or a number is none.
        """
        tree = read_plain(path)
        if not isinstance(tree.get("flow"), dict):
            raise UsageError(f"{path} describes no flow")
        places = {
            "token_rate_hz": "flow.input_frame_rate",
            "rate_hz": "hift.sampling_rate",
            "encoder_heads": "flow.encoder.attention_heads",
            "unet_heads": "flow.decoder.estimator.num_heads",
            "guidance": "flow.decoder.cfm_params.content.inference_cfg_rate",
        }
        grid = _at(tree, "flow.decoder.cfm_params.content.t_scheduler")
        if grid not in (None, "cosine"):
            raise UsageError(f"{path}: the flow's times are {grid!r}; only cosine is known")
        found = {name: _at(tree, place) for name, place in places.items()}
        numbers = {n: _number(v, f"{path}: {places[n]}") for n, v in found.items() if v is not None}
        return cls(**numbers)


def read_plain(path: str | Path) -> dict[str, Any]:
    """The file as plain mappings, lists and values, every tag dropped.

    Raises:
        UsageError: the file is missing, or is not such YAML.
    """
    path = Path(path)
    try:
        tree = _load(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UsageError(f"{path} is not valid YAML: {reason}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} is not a mapping")
    return tree


def _load(text: str) -> Any:
    loader = _Plain(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _at(tree: dict[str, Any], place: str) -> Any:
    """The value at a dotted place, references such as ``<sample_rate>`` followed once; or None."""
    value: Any = tree
    for key in place.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return _at(tree, reference[1]) if reference and reference[1] != place else value


def _number(value: Any, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise UsageError(f"{where} is {value!r}, not a number of 0 or more")
    return value
