"""The semantic encoder's weights out of ``speech_tokenizer_v1.onnx``, without running the graph.

An ONNX file is a protocol-buffer message; the few fields needed here are read by hand, so that no
further package is. Matrices are anonymous in the file: they are known by the nodes that use them.
Letters: W width, K codes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.tokenizer.whisper import STRIDE

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_NAME, _NODE_KIND, _NODE_ATTRIBUTE = 1, 3, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGERS = 1, 8
_TENSOR_SIZES, _TENSOR_TYPE, _TENSOR_FLOATS = 1, 2, 4
_TENSOR_NAME, _TENSOR_BYTES, _TENSOR_OUTSIDE = 8, 9, 13
_FLOATS = {1: "<f4", 10: "<f2", 11: "<f8"}
_VARINT, _EIGHT_BYTES, _SIZED, _FOUR_BYTES = 0, 1, 2, 5
_BLOCK = re.compile(
    r"blocks\.(\d+)/(attn/query|attn/key|attn/value|attn/out|attn_ln|mlp_ln|mlp/mlp\.[02])/(\w+)$"
)


@dataclass
class _Node:
    """An operation: its name, kind, inputs, and the strides of a convolution."""

    name: str = ""
    kind: str = ""
    inputs: list[str] = field(default_factory=list)
    strides: list[int] = field(default_factory=list)


def read_semantic_onnx(path: str | Path) -> dict[str, Tensor]:
    """Weights of a semantic tokenizer's file under their names in torch.

    Raises:
        UsageError: not such a file, or one of another rate.
    """
    path = Path(path)
    try:
        nodes, tensors = _graph(memoryview(path.read_bytes()))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except (OSError, ValueError, IndexError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(f"{path} cannot be read as an ONNX file: {reason}") from None
    return _named(nodes, tensors, path)


def _named(nodes: list[_Node], tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Give each weight its name by the node that uses it."""
    found: dict[str, Tensor] = {}
    convolutions = [n for n in nodes if n.kind == "Conv" and set(n.inputs) & set(tensors)]
    if len(convolutions) != 2:
        raise UsageError(
            f"{path} has {len(convolutions)} convolutions, a semantic tokenizer of this family "
            "has two: it is another network (Step-Audio 2 and CosyVoice 2 use such)"
        )
    for number, node in enumerate(convolutions, 1):
        if set(node.strides) != {STRIDE}:
            raise UsageError(
                f"{path} is not the 25 Hz semantic tokenizer: its convolution {number} moves by "
                f"{node.strides}, not by {STRIDE} (CosyVoice's 50 Hz file does)"
            )
        names = [name for name in node.inputs if name in tensors]
        for name, part in zip(names, ("weight", "bias"), strict=False):
            found[f"encoder.conv{number}.{part}"] = tensors[name]
    for node in nodes:
        for name in node.inputs:
            if name in tensors and (role := _role(node, name, weight := tensors[name])):
                matrix = weight.dim() == 2 and not role.endswith("positional_embedding")
                found[role] = weight.T if matrix else weight
    return {name: tensor.float().contiguous().clone() for name, tensor in found.items()}


def _role(node: _Node, name: str, weight: Tensor) -> str | None:
    """The name in torch of a weight that a node takes in; None for constants."""
    if name.endswith("positional_embedding"):
        return "encoder.positional_embedding"
    if "_codebook" in node.name and node.kind in ("MatMul", "Pow") and weight.dim() == 2:
        return "quantizer._codebook.embed"
    match = _BLOCK.search(node.name)
    if match is None:
        return None
    number, module, operation = match.groups()
    if node.kind == "LayerNormalization":
        part = {1: "weight", 2: "bias"}.get(node.inputs.index(name))
    else:  # an older graph spells the norm out; its first Add is that of the epsilon
        norm = module.endswith("_ln")
        parts = {"Mul": "weight", "Add_1": "bias"} if norm else {"MatMul": "weight", "Add": "bias"}
        part = parts.get(operation)
    return part and f"encoder.blocks.{number}.{module.replace('mlp/', '').replace('/', '.')}.{part}"


def _graph(data: memoryview) -> tuple[list[_Node], dict[str, Tensor]]:
    """Nodes in order, and the floating-point tensors by name."""
    graphs = [value for number, value in fields(data) if number == _MODEL_GRAPH]
    if len(graphs) != 1:
        raise UsageError("the file holds no ONNX graph")
    nodes, tensors = [], {}
    for number, value in fields(graphs[0]):
        if number == _GRAPH_NODE:
            nodes.append(_node(value))
        elif number == _GRAPH_INITIALIZER:
            name, tensor = _tensor(value)
            if tensor is not None:
                tensors[name] = tensor
    return nodes, tensors


def _node(data: memoryview) -> _Node:
    node = _Node()
    for number, value in fields(data):
        if number == _NODE_INPUT:
            node.inputs.append(_text(value))
        elif number == _NODE_NAME:
            node.name = _text(value)
        elif number == _NODE_KIND:
            node.kind = _text(value)
        elif number == _NODE_ATTRIBUTE:
            parts = list(fields(value))
            if any(n == _ATTRIBUTE_NAME and _text(v) == "strides" for n, v in parts):
                node.strides = [i for n, v in parts if n == _ATTRIBUTE_INTEGERS for i in _whole(v)]
    return node


def _tensor(data: memoryview) -> tuple[str, Tensor | None]:
    """Name and value of an initializer; None for whole numbers."""
    sizes: list[int] = []
    name, kind, content = "", 0, np.zeros(0, dtype=np.float32)
    for number, value in fields(data):
        if number == _TENSOR_SIZES:
            sizes += _whole(value)
        elif number == _TENSOR_TYPE:
            kind = value
        elif number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_OUTSIDE:
            raise UsageError("the ONNX file keeps its weights in a file beside it: join them first")
        elif number in (_TENSOR_BYTES, _TENSOR_FLOATS) and kind in (0, *_FLOATS):
            packed = "<f4" if number == _TENSOR_FLOATS else _FLOATS.get(kind, "<f4")
            content = np.frombuffer(value, dtype=packed)
    if kind not in _FLOATS:
        return name, None
    return name, torch.from_numpy(content.astype(np.float32)).reshape(sizes)


def _text(value: Any) -> str:
    return bytes(value).decode("utf-8")


def _whole(value: Any) -> list[int]:
    """Whole numbers of a repeated field, packed or one."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of every field of a message: an int, or the bytes of it."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == _SIZED:
            size, at = _varint(data, at)
        else:
            size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(kind, -1)
        if size < 0 or at + size > len(data):
            raise UsageError("the file is damaged, cut short, or not an ONNX file")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number in groups of seven bits from ``at`` on, and where the next field begins."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
