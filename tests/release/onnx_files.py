"""ONNX files written by hand, field by field: what an exporter leaves of a semantic encoder."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def sized(field: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def initializer(name: str, tensor: Tensor, *, half: bool = False) -> bytes:
    sizes = b"".join(number(1, n) for n in tensor.shape)
    content = tensor.numpy().astype("<f2" if half else "<f4").tobytes()
    return sized(5, sizes + number(2, 10 if half else 1) + sized(8, name) + sized(9, content))


def node(name: str, kind: str, inputs: list[str], strides: int = 0) -> bytes:
    content = b"".join(sized(1, i) for i in inputs) + sized(2, "out")
    content += sized(3, name) + sized(4, kind)
    if strides:
        kernel = sized(5, sized(1, "kernel_shape") + number(8, 3) + number(20, 7))
        content += kernel + sized(5, sized(1, "strides") + sized(8, varint(strides)))
    return sized(1, content)


def write_onnx(
    path: Path, state: dict[str, Tensor], *, stride: int = 2, fused: bool = False
) -> None:
    """Write a semantic encoder's state as the released file holds it.

    ``stride`` of the first convolution; ``fused``: layer norms as one node, as newer files do.
    """
    nodes, tensors = b"", b""
    for n in (1, 2):
        names = [f"encoders.conv{n}.weight", f"encoders.conv{n}.bias"]
        nodes += node(f"/conv{n}/Conv", "Conv", ["x", *names], stride if n == 1 else 2)
        for name in names:
            tensors += initializer(name, state[name.replace("encoders", "encoder")])
    nodes += node("/Slice", "Slice", ["encoders.positional_embedding", "starts"])
    tensors += initializer("encoders.positional_embedding", state["encoder.positional_embedding"])
    ends = np.array([3], dtype="<i8").tobytes()
    tensors += sized(5, number(1, 1) + number(2, 7) + sized(8, "starts") + sized(9, ends))
    for count, name in enumerate(sorted(k for k in state if k.startswith("encoder.blocks"))):
        _, _, block, *module, part = name.split(".")
        place = f"/blocks.{block}/" + "/".join(module).replace("mlp/", "mlp/mlp.")
        norm, anonymous = module[0].endswith("_ln"), f"onnx::MatMul_{count}"
        if norm and fused:
            both = [f"{place}.weight", f"{place}.bias"]
            nodes += node(f"{place}/LayerNormalization", "LayerNormalization", ["x", *both])
            tensors += initializer(f"{place}.{part}", state[name])
            continue
        weight, bias = ("Mul", "Add_1") if norm else ("MatMul", "Add")
        operation = weight if part == "weight" else bias
        nodes += node(f"{place}/{operation}", operation.split("_")[0], ["x", anonymous])
        tensors += initializer(anonymous, state[name].T if operation == "MatMul" else state[name])
    book = state["quantizer._codebook.embed"]
    for operation, kind_ in (("Pow_1", "Pow"), ("MatMul", "MatMul")):
        where = f"/quantizer/rq/model/layers.0/_codebook/{operation}"
        nodes += node(where, kind_, ["onnx::MatMul_1672", "two"])
    tensors += initializer("onnx::MatMul_1672", book.T) + initializer("two", torch.tensor(2.0))
    graph = nodes + sized(2, "main") + tensors
    path.write_bytes(number(1, 8) + sized(2, "an exporter") + sized(7, graph))
