"""Weights out of an ONNX file, under the names they have in torch."""

from pathlib import Path

import pytest
import torch

from aqaa.errors import UsageError
from aqaa.release.onnx_weights import read_semantic_onnx
from tests.release.onnx_files import initializer, node, number, sized, write_onnx
from tests.release.test_tokenizer import semantic_state


@pytest.mark.parametrize("fused", [False, True])
def test_every_weight_comes_back(fused: bool, tmp_path: Path) -> None:
    state = semantic_state()
    write_onnx(tmp_path / "s.onnx", state, fused=fused)
    found = read_semantic_onnx(tmp_path / "s.onnx")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor), name


def test_the_50_hz_file_is_told_by_its_stride(tmp_path: Path) -> None:
    write_onnx(tmp_path / "speech_tokenizer_v1.onnx", semantic_state(), stride=1)
    with pytest.raises(UsageError, match=r"not the 25 Hz .* convolution 1 moves by \[1\]"):
        read_semantic_onnx(tmp_path / "speech_tokenizer_v1.onnx")


def test_another_network_is_told_by_its_convolutions(tmp_path: Path) -> None:
    graph = node("/a/Conv", "Conv", ["x", "w"], 2) + initializer("w", torch.randn(2, 2, 3))
    (tmp_path / "s.onnx").write_bytes(sized(7, graph))
    with pytest.raises(UsageError, match="1 convolutions, .* it is another network"):
        read_semantic_onnx(tmp_path / "s.onnx")


def test_halves_and_weights_beside_the_file(tmp_path: Path) -> None:
    path, w = tmp_path / "s.onnx", torch.randn(2, 2, 3).half().float()
    nodes = node("/a/Conv", "Conv", ["x", "w"], 2) + node("/b/Conv", "Conv", ["x", "w"], 2)
    path.write_bytes(sized(7, nodes + initializer("w", w, half=True)))
    assert torch.equal(read_semantic_onnx(path)["encoder.conv2.weight"], w)
    outside = sized(5, number(1, 2) + number(2, 1) + sized(8, "w") + sized(13, b""))
    path.write_bytes(sized(7, nodes + outside))
    with pytest.raises(UsageError, match=r"s\.onnx: the ONNX file keeps its weights in a file"):
        read_semantic_onnx(path)


@pytest.mark.parametrize("keep", [0, 1, 900, -40])
def test_a_cut_file_is_a_sentence(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "s.onnx"
    write_onnx(path, semantic_state())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UsageError, match=r"s\.onnx"):
        read_semantic_onnx(path)


@pytest.mark.parametrize("content", [b"not a graph at all, but words", b"\xff" * 64, b"\x00" * 9])
def test_what_is_no_graph_is_a_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.onnx").write_bytes(content)
    with pytest.raises(UsageError, match=r"s\.onnx"):
        read_semantic_onnx(tmp_path / "s.onnx")
    with pytest.raises(UsageError, match="cannot be read"):
        read_semantic_onnx(tmp_path / "absent.onnx")
