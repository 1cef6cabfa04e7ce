"""Released tokenizers from their folder and from plain tensors; what does not fit is a sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.release.tokenizer import (
    linguistic_encoder_from_state,
    linguistic_frontend,
    load_one,
    load_tokenizer,
    semantic_encoder_from_state,
)
from aqaa.storage import save_tensors
from aqaa.tokenizer.dual import DualTokenizer
from aqaa.tokenizer.learner import LinguisticLearner
from aqaa.tokenizer.sanm import SanmEncoder
from tests.golden.make import SANM, WHISPER, randomise, sanm, whisper
from tests.release.onnx_files import write_onnx

PARAFORMER = "dengcunqin/speech_paraformer-large_asr_nat-zh-cantonese-en-16k-vocab8501-online"
SOUND = 0.3 * torch.randn(24_000, generator=torch.Generator().manual_seed(0))


def linguistic_state(encoder: SanmEncoder | None = None) -> dict[str, Tensor]:
    state = (encoder or sanm()).state_dict()
    return {f"encoder.{k}": v.clone() for k, v in state.items()}


def semantic_state(*, codes: int = 32, positions: int = 40) -> dict[str, Tensor]:
    network = whisper(codes=codes, positions=positions)
    state = {f"encoder.{k}": v.clone() for k, v in network.encoder.state_dict().items()}
    return {**state, "quantizer._codebook.embed": network.codebook.vectors.clone()}


def statistics() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shift, scale = torch.randn(560, generator=generator), torch.rand(560, generator=generator)
    return shift.round(decimals=4), scale.round(decimals=4) + 0.1


def write_statistics(path: Path) -> None:
    lines = ["<Nnet>", "<Splice> 560 560", "[ 0 ]"]
    for part, values in zip(("<AddShift>", "<Rescale>"), statistics(), strict=True):
        numbers = " ".join(f"{v:.4f}" for v in values.tolist())
        lines += [f"{part} 560 560", f"<LearnRateCoef> 0 [ {numbers} ]"]
    path.write_text("\n".join([*lines, "</Nnet>"]) + "\n")


def centres(width: int = 8, codes: int = 16) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(codes, width)).astype(np.float32)


def write_release(folder: Path, *, whole: bool = False) -> Path:
    """A released folder with a tiny network in it; ``whole``: with books and ear of real size."""
    sizes = {"codes": 4096, "positions": 1500} if whole else {}
    heads_of_four = randomise(SanmEncoder(**{**SANM, "heads": 4}))
    assert isinstance(heads_of_four, SanmEncoder)
    paraformer = folder / PARAFORMER
    paraformer.mkdir(parents=True)
    rest = {"predictor.cif.weight": torch.ones(2), "decoder.embed.0.weight": torch.ones(3)}
    torch.save({**linguistic_state(heads_of_four), **rest}, paraformer / "model.pt")
    write_statistics(paraformer / "am.mvn")
    np.save(folder / "linguistic_tokenizer.npy", centres(codes=1024 if whole else 16))
    write_onnx(folder / "speech_tokenizer_v1.onnx", semantic_state(**sizes))
    return folder


@torch.no_grad()
def test_encoders_from_plain_tensors_are_those_they_came_from() -> None:
    feats = torch.randn(2, 11, 560, generator=torch.Generator().manual_seed(1))
    encoder = linguistic_encoder_from_state(linguistic_state(), heads=SANM["heads"])
    assert torch.equal(
        encoder.encode_chunks(feats, [4, 4, 3]), sanm().encode_chunks(feats, [4, 4, 3])
    )
    mel, lengths = torch.randn(2, 128, 40), torch.tensor([40, 22])
    network = semantic_encoder_from_state(semantic_state(), heads=WHISPER["heads"])
    for found, expected in zip(network(mel, lengths), whisper()(mel, lengths), strict=True):
        assert torch.equal(found, expected)
    assert not network.training and not encoder.training


@torch.no_grad()
def test_a_folder_becomes_both_tokenizers(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_release(tmp_path / "release"))
    shift, scale = statistics()
    encoder = randomise(SanmEncoder(**{**SANM, "heads": 4}))
    assert isinstance(encoder, SanmEncoder)
    feats = (linguistic_frontend(SOUND) + shift) * scale
    vectors = encoder.encode_chunks(feats[None], [4] * 6 + [1])[0]
    expected = torch.cdist(vectors, torch.from_numpy(centres())).argmin(-1)
    found = tokenizer.encode(SOUND)
    assert found.linguistic == expected.tolist()
    assert len(found.semantic) == 38
    assert tokenizer.peak == 0.999
    tokenizer.save(tmp_path / "ours")
    assert DualTokenizer.load(tmp_path / "ours").encode(SOUND) == found


def test_semantic_weights_may_be_a_torch_or_safetensors_file(tmp_path: Path) -> None:
    folder = write_release(tmp_path)
    expected = load_tokenizer(folder).encode(SOUND)
    (folder / "speech_tokenizer_v1.onnx").unlink()
    torch.save(semantic_state(), folder / "speech_tokenizer_v1.pt")
    assert load_tokenizer(folder).encode(SOUND) == expected
    (folder / "speech_tokenizer_v1.pt").unlink()
    save_tensors(folder / "speech_tokenizer_v1.safetensors", semantic_state())
    assert load_tokenizer(folder).encode(SOUND) == expected


YAML = "flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec\n  input_frame_rate: {}\n"


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_bare_tensors_that_may_be_of_the_50_hz_book_are_refused(kind: str, tmp_path: Path) -> None:
    def put(name: str, rate_hz: float | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir()
        if kind == "pt":
            torch.save(semantic_state(), path)
        else:
            save_tensors(path, semantic_state())
        if rate_hz is not None:
            path.with_name("cosyvoice.yaml").write_text(YAML.format(rate_hz))
        return path.parent

    with pytest.raises(UsageError, match=f"v1.{kind} may be CosyVoice's 50 Hz .* give the .onnx"):
        load_one(put(f"a/speech_tokenizer_v1.{kind}"), "semantic")
    with pytest.raises(UsageError, match="by the 50 Hz of .*cosyvoice.yaml, CosyVoice's 50 Hz"):
        load_one(put(f"b/speech_tokenizer_v1.{kind}", 50), "semantic")
    with pytest.raises(UsageError, match="is, by its name, CosyVoice's 50 Hz"):
        load_one(put(f"c50Hz/speech_tokenizer_v1.{kind}"), "semantic")
    for number, (name, rate_hz) in enumerate(
        [("v1_25hz", None), ("v1", 25), ("v1", 41.67)], start=1
    ):
        folder = put(f"ok{number}/speech_tokenizer_{name}.{kind}", rate_hz)
        assert load_one(folder, "semantic").codebook.vectors.equal(
            semantic_state()["quantizer._codebook.embed"]
        )
    whole = write_release(tmp_path / "whole")
    (whole / "speech_tokenizer_v1.onnx").rename(whole / "speech_tokenizer_v1.gone")
    (tmp_path / f"a/speech_tokenizer_v1.{kind}").rename(whole / f"speech_tokenizer_v1.{kind}")
    assert load_tokenizer(whole).semantic.book == "semantic"
    (whole / "cosyvoice.yaml").write_text(YAML.format(50))
    with pytest.raises(UsageError, match="by the 50 Hz of"):
        load_tokenizer(whole)


def test_training_starts_from_a_released_folder_or_from_one_of_ours(tmp_path: Path) -> None:
    released, ours = write_release(tmp_path / "release"), tmp_path / "ours"
    both = load_tokenizer(released)
    both.save(ours)
    for book in ("linguistic", "semantic"):
        whole = getattr(both, book)
        for folder in (released, ours / book):
            one = load_one(folder, book)
            assert one.book == book
            assert one.encode_sound(SOUND) == whole.encode_sound(SOUND)
    sizes = dict(both.linguistic.settings["encoder"], codes=len(both.linguistic.codebook.vectors))
    del sizes["in_width"]
    learner = LinguisticLearner(labels=["a"], emotions=[], **sizes)
    learner.take(load_one(released, "linguistic"))
    assert learner.tokenizer.encode_sound(SOUND) == both.linguistic.encode_sound(SOUND)
    assert learner.tokenizer.shift.equal(both.linguistic.shift)
    with pytest.raises(UsageError, match="is not a folder"):
        load_one(tmp_path / "absent", "semantic")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _model(change: dict[str, Tensor] | None) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / PARAFORMER / "model.pt"
        if change is None:
            path.write_bytes(path.read_bytes()[:500])
        else:
            torch.save({**torch.load(path, weights_only=True), **change}, path)

    return edit


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return edit


def _centres(array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "linguistic_tokenizer.npy", array, allow_pickle=True)


FOREIGN = json.dumps({"model_type": "step_audio_2"}).encode()
BAD: list[tuple[Callable[[Path], None], str]] = [
    (without("speech_tokenizer_v1.onnx"), "lacks a semantic tokenizer"),
    (without("linguistic_tokenizer.npy"), "linguistic_tokenizer.npy does not exist"),
    (without(f"{PARAFORMER}/model.pt"), "model.pt does not exist"),
    (without(f"{PARAFORMER}/am.mvn"), "holds 0 files am.mvn"),
    (_write("more/am.mvn", b""), "holds 2 files am.mvn"),
    (_write(f"{PARAFORMER}/am.mvn", b"<AddShift> [ 1 2"), "am.mvn is damaged: <AddShift>"),
    (_write(f"{PARAFORMER}/am.mvn", b"<AddShift> [ 1 2 ]"), "<AddShift> has 2 numbers"),
    (_model(None), "model.pt is not a file of plain tensors"),
    (_model({"encoder.extra": torch.ones(1)}), "has no place for 1 tensors: encoder.extra"),
    (_model({"seaco.x": torch.ones(1)}), "place for 1 tensors: seaco.x; name a prefix to ignore"),
    (_model({"encoder.after_norm.bias": torch.ones(9)}), r"after_norm.bias has the shape \(9,\)"),
    (_centres(centres(9)), "centres of width 9, the encoder gives 8"),
    (_centres(np.full((16, 8), np.nan)), "centres .* are needed"),
    (_centres(np.array([{"a": 1}], dtype=object)), "is no array of numbers"),
    (_write("linguistic_tokenizer.npy", b"words"), "is no array of numbers"),
    (_write("config.json", FOREIGN), "is of Step-Audio 2 or R1"),
    (_write("token2wav/speech_tokenizer_v2_25hz.onnx", b""), "is of Step-Audio 2 or R1"),
    (lambda f: write_onnx(f / "speech_tokenizer_v1.onnx", semantic_state(), stride=1), "25 Hz"),
]


@pytest.mark.parametrize(("spoil", "sentence"), BAD, ids=[s for _, s in BAD])
def test_a_folder_that_does_not_fit_is_a_sentence(
    spoil: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    folder = write_release(tmp_path / "release")
    spoil(folder)
    with pytest.raises(UsageError, match=sentence):
        load_tokenizer(folder)


def test_further_tensors_go_by_a_named_prefix_only(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "release")
    _model({"seaco.x": torch.ones(1)})(folder)
    assert load_tokenizer(folder, ignore=["seaco."]).encode(SOUND).groups
    with pytest.raises(UsageError, match="is not a folder"):
        load_tokenizer(tmp_path / "absent")


def test_a_missing_tensor_is_named() -> None:
    state = linguistic_state()
    del state["encoder.encoders.0.norm2.bias"]
    with pytest.raises(UsageError, match=r"encoder lacks 1 tensors: encoder\.encoders\.0\.norm2"):
        linguistic_encoder_from_state(state, heads=2)
    with pytest.raises(UsageError, match=r"not the linguistic encoder: .* encoder\.encoders0"):
        linguistic_encoder_from_state({}, heads=2)
    other = semantic_state()
    del other["encoder.blocks.1.mlp.2.bias"]
    with pytest.raises(UsageError, match=r"encoder lacks 1 tensors: encoder\.blocks\.1\.mlp\.2"):
        semantic_encoder_from_state(other, heads=2)
    with pytest.raises(UsageError, match="has no place for 1 tensors: quantizer.project_in.bias"):
        semantic_encoder_from_state(
            {**semantic_state(), "quantizer.project_in.bias": torch.ones(1)}, heads=2
        )


def test_cosyvoice_2s_tokenizer_is_named() -> None:
    state = {**semantic_state(), "quantizer._codebook.project_down.weight": torch.ones(8, 8)}
    with pytest.raises(UsageError, match="CosyVoice 2's tokenizer"):
        semantic_encoder_from_state(state, heads=2)


def test_the_released_sizes_are_read_from_the_tensors() -> None:
    """Names and shapes as published, on a device that holds no numbers."""
    with torch.device("meta"):
        encoder = SanmEncoder()
    state = linguistic_state(encoder)
    assert len(state) == 652
    assert sum(v.numel() for v in state.values()) == 157_975_648
    assert state["encoder.encoders0.0.self_attn.linear_q_k_v.weight"].shape == (1536, 560)
    assert state["encoder.encoders.48.self_attn.fsmn_block.weight"].shape == (512, 1, 11)
