"""The released vocoder loads strictly, whatever its sizes; what does not fit is one sentence."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.release import flow_from_state, load_vocoder, save_vocoder, waveform_from_state
from aqaa.signals import CodePair
from tests.golden.make import hift, token_flow
from tests.release import released

State = dict[str, Tensor]
HEADS: dict[str, Any] = {"encoder_heads": 8, "unet_heads": 8}
TINY: dict[str, Any] = {"width": 8, "heads": 4, "inner": 12, "layers": 1, "mel": 6, "speaker": 3,
                        "regulator": 1, "channels": 8, "attention": 6, "blocks": 1,
                        "middle": 2}  # fmt: skip
YAML = """
__set_seed: !apply:os.system ["exit 1"]
sample_rate: 22050
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_frame_rate: 41.67
    encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder
        attention_heads: 4
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        cfm_params: !new:omegaconf.DictConfig
            content:
                t_scheduler: 'cosine'
                inference_cfg_rate: 0.5
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            num_heads: 2
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    sampling_rate: !ref <sample_rate>
"""


def meta(shapes: released.Shapes) -> State:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def numbers(shapes: released.Shapes) -> State:
    generator = torch.Generator().manual_seed(0)
    return {
        n: torch.randn(s, generator=generator) * (0.1 if len(s) > 1 else 0.3) + (len(s) < 2)
        for n, s in shapes.items()
    }


def tiny_flow(tokens: int = 5120) -> State:
    return numbers(released.flow(tokens=tokens, **TINY))


def tiny_head() -> State:
    return numbers(released.head(channels=8, pitch=4, mel=6, harmonics=2))


def test_the_formulas_count_what_was_released() -> None:
    for shapes, tensors, elements in (
        (released.flow(), 1185, 105_399_552),
        (released.head(), 227, 20_460_591),
    ):
        assert len(shapes) == tensors
        assert sum(math.prod(shape) for shape in shapes.values()) == elements


def test_the_released_sizes_are_found_in_the_shapes() -> None:
    flow = flow_from_state(meta(released.flow()), **HEADS)
    assert flow.settings == {
        "tokens": 5121, "mel_bins": 80, "speaker_width": 192, "regulator_layers": 4,
        "token_rate_hz": pytest.approx(125 / 3),
        "encoder": {"code_width": 512, "width": 512, "heads": 8, "inner": 2048, "layers": 6},
        "estimator": {
            "channels": [256, 256], "heads": 8, "head_width": 64, "blocks": 4, "middle": 12,
        },
    }  # fmt: skip
    head = waveform_from_state(meta(released.head()))
    assert head.settings == {
        "channels": 512, "mel_bins": 80, "rates": [8, 8], "fft_size": 16, "kernels": [3, 7, 11],
        "source_kernels": [7, 11], "dilations": 3, "harmonics": 8, "pitch_channels": 512,
        "pitch_layers": 5,
    }  # fmt: skip
    for module, shapes in ((flow, released.flow()), (head, released.head())):
        assert {n: tuple(t.shape) for n, t in module.state_dict().items()} == shapes


def test_tiny_sizes_are_found_and_the_numbers_arrive() -> None:
    state = tiny_flow(tokens=7)
    flow = flow_from_state(state, encoder_heads=4, unet_heads=2, token_rate_hz=25.0)
    assert flow.frames(10) == int(10 / 25 * 22050 / 256)
    assert all(torch.equal(t, state[n]) for n, t in flow.state_dict().items())
    mel = flow.sample(torch.tensor([[1, 2, 6]]), steps=2)
    assert mel.shape == (1, 6, flow.frames(3)) and mel.isfinite().all()
    head = waveform_from_state(tiny_head())
    assert head(mel).shape == (1, 256 * mel.shape[2])


@torch.no_grad()
def test_what_was_saved_as_a_state_is_the_same_organ() -> None:
    flow, head = token_flow(), hift()
    again = flow_from_state(flow.state_dict(), encoder_heads=2, unet_heads=3)
    tokens, noise = torch.arange(10)[None], torch.randn(1, 10, 20)
    wanted = flow.sample(tokens, noise=noise, steps=2)
    assert torch.equal(again.sample(tokens, noise=noise, steps=2), wanted)
    assert again.settings == {**flow.settings, "encoder": {**flow.settings["encoder"]}}
    mel, source = torch.randn(1, 10, 3), torch.randn(1, 1, 768)
    built = waveform_from_state(head.state_dict())
    assert torch.equal(built.decode(mel, source), head.decode(mel, source))


def test_a_state_is_copied_and_widened() -> None:
    state = {n: t.bfloat16() for n, t in tiny_flow().items()}
    before = {n: t.clone() for n, t in state.items()}
    flow = flow_from_state(state, encoder_heads=4, unet_heads=2)
    assert not flow.training and {p.dtype for p in flow.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in flow.parameters())
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
    assert all(torch.equal(t, before[n]) for n, t in state.items())


@torch.no_grad()
def test_both_spellings_of_weight_norm_are_one_head() -> None:
    old, new = tiny_head(), {}
    for name, tensor in old.items():
        name = name.replace("weight_g", "parametrizations.weight.original0")
        new[name.replace("weight_v", "parametrizations.weight.original1")] = tensor
    assert "conv_pre.parametrizations.weight.original1" in new and len(new) == len(old)
    mel, source = torch.randn(1, 6, 3), torch.randn(1, 1, 768)
    one, two = waveform_from_state(old), waveform_from_state(new)
    assert torch.equal(one.decode(mel, source), two.decode(mel, source))
    assert torch.equal(one.f0(mel), two.f0(mel))


def broken(state: State, change: str) -> State:
    """A state with one thing wrong."""
    name = "encoder_proj.bias" if "encoder_proj.bias" in state else "conv_pre.bias"
    if change == "missing":
        del state[name]
    elif change == "unknown":
        state |= {"vision.weight": torch.zeros(2), "vision.bias": torch.zeros(2)}
    elif change == "misshapen":
        state[name] = torch.zeros(99)
    elif change == "NaN":
        state[name] = state[name] * torch.nan
    elif change == "a number":
        state[name] = 3  # type: ignore[assignment]
    return state


SENTENCES = {
    "missing": r"lacks 1 tensors: (encoder_proj|conv_pre)\.bias",
    "unknown": r"has no place for 2 tensors: vision\.bias, vision\.weight; name a prefix",
    "misshapen": r"(encoder_proj|conv_pre)\.bias has the shape \(99,\), not \(\d+,\)",
    "NaN": r"\.bias holds NaN",
    "a number": r"\.bias has the shape \(\), not",
}


@pytest.mark.parametrize("change", SENTENCES)
def test_a_state_that_does_not_fit_is_one_sentence(change: str) -> None:
    with pytest.raises(UsageError, match="the flow of Step-Audio's vocoder.*" + SENTENCES[change]):
        flow_from_state(broken(tiny_flow(), change), encoder_heads=4, unet_heads=2)
    with pytest.raises(UsageError, match="the HiFT head of .*" + SENTENCES[change]):
        waveform_from_state(broken(tiny_head(), change))


def test_a_named_prefix_is_ignored() -> None:
    state, head = broken(tiny_flow(), "unknown"), broken(tiny_head(), "unknown")
    flow_from_state(state, encoder_heads=4, unet_heads=2, ignore=["vision."])
    waveform_from_state(head, ignore=["vision."])
    with pytest.raises(UsageError, match="lacks"):
        waveform_from_state(head, ignore=["vision.", "conv_pre.bias"])


def test_heads_must_fit() -> None:
    with pytest.raises(UsageError, match="encoder_heads is 2, the tensors have 4"):
        flow_from_state(tiny_flow(), encoder_heads=2, unet_heads=2)
    with pytest.raises(UsageError, match="unet_heads is 4, which does not divide the width 6"):
        flow_from_state(tiny_flow(), encoder_heads=4, unet_heads=4)
    with pytest.raises(UsageError, match="token_rate_hz is 0"):
        flow_from_state(tiny_flow(), encoder_heads=4, unet_heads=2, token_rate_hz=0)


@pytest.mark.parametrize(
    ("names", "thing"),
    [
        (["decoder.estimator.blocks.0.attn.q_norm.weight"], "DiT flow of Step-Audio-EditX"),
        (["encoder.up_encoders.0.norm_ff.bias", "decoder.estimator.x"], "CosyVoice 2"),
        (["decoder.estimator.transformer_blocks.0.ff.bias"], "CosyVoice 3"),
        (["model.layers.0.mlp.up_proj.weight"], "a language model"),
        (["quux"], "something unknown"),
    ],
)
def test_relatives_are_named(names: list[str], thing: str) -> None:
    state = {name: torch.zeros(1) for name in names}
    with pytest.raises(UsageError, match=f"tensors of .*{thing}.*, not of the flow"):
        flow_from_state(state, **HEADS)
    with pytest.raises(UsageError, match=f"tensors of .*{thing}.*, not of the HiFT"):
        waveform_from_state(state)


def test_flow_and_head_are_not_each_other() -> None:
    with pytest.raises(UsageError, match="tensors of a HiFT waveform head, not of the flow"):
        flow_from_state(tiny_head(), **HEADS)
    with pytest.raises(UsageError, match="tensors of a U-Net flow .*, not of the HiFT head"):
        waveform_from_state(tiny_flow())


def test_the_head_for_24_khz_is_named() -> None:
    state = tiny_head()
    state |= {f"ups.{i}.weight_v": torch.zeros(4, 2, k) for i, k in enumerate((16, 11, 7))}
    with pytest.raises(UsageError, match=r"kernels \[16, 11, 7\].*EditX's for 24 kHz"):
        waveform_from_state(state)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cosyvoice.yaml").write_text(YAML)
    torch.save(tiny_flow(), tmp_path / "flow.pt")
    torch.save({f"generator.{n}": t for n, t in tiny_head().items()}, tmp_path / "hift.pt")
    return tmp_path


def test_a_folder_speaks(folder: Path) -> None:
    vocoder = load_vocoder(folder)
    assert vocoder.guidance == 0.5 and vocoder.flow.token_rate_hz == 41.67
    sound = vocoder.speak(CodePair([1, 2], [3, 4, 5]))
    assert len(sound.samples) == 256 * vocoder.flow.frames(5) and sound.rate_hz == 22050
    torch.save(tiny_head(), folder / "hift.pt")  # the same without a prefix
    assert (load_vocoder(folder).speak(CodePair([1, 2], [3, 4, 5])).samples == sound.samples).all()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("41.67", "50", "for 50 tokens a second, not for both books interleaved at 41.67"),
        ("41.67", "25", "give token_rate_hz"),
        ("sample_rate: 22050", "sample_rate: 24000", "makes sound at 24000 Hz, not 22050"),
        ("'cosine'", "'linear'", "times are 'linear'; only cosine is known"),
        ("attention_heads: 4", "attention_heads: 'x'", "attention_heads is 'x', not a number"),
        ("flow: !new", "stream: !new", "describes no flow"),
    ],
)
def test_a_yaml_of_something_else_is_one_sentence(
    folder: Path, old: str, new: str, sentence: str
) -> None:
    (folder / "cosyvoice.yaml").write_text(YAML.replace(old, new))
    with pytest.raises(UsageError, match=sentence):
        load_vocoder(folder)


def test_what_hears_speakers_may_lie_beside_and_is_not_read(folder: Path) -> None:
    before = load_vocoder(folder).flow.state_dict()
    for name in ("campplus.onnx", "speech_tokenizer_v1.onnx"):
        (folder / name).write_bytes(b"no network at all")
    after = load_vocoder(folder).flow.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_a_rate_may_be_told(folder: Path) -> None:
    (folder / "cosyvoice.yaml").write_text(YAML.replace("41.67", "50"))
    assert load_vocoder(folder, token_rate_hz=125 / 3).flow.token_rate_hz == 125 / 3


@pytest.mark.parametrize("name", ["cosyvoice.yaml", "flow.pt", "hift.pt"])
def test_a_missing_file_is_one_sentence(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UsageError, match=name):
        load_vocoder(folder)


def test_another_flow_is_named_before_its_rates(folder: Path) -> None:
    (folder / "cosyvoice.yaml").write_text(YAML.replace("41.67", "25").replace("22050", "24000"))
    name = "decoder.estimator.blocks.0.attn.q_norm.weight"
    torch.save({name: torch.zeros(1)}, folder / "flow.pt")
    with pytest.raises(UsageError, match="tensors of the DiT flow of Step-Audio-EditX"):
        load_vocoder(folder)


def test_there_and_back_again(folder: Path, tmp_path: Path) -> None:
    vocoder, out = load_vocoder(folder), tmp_path / "out"
    with torch.no_grad():
        vocoder.flow.encoder_proj.bias += 0.5
    save_vocoder(vocoder, out, like=folder)
    assert (out / "cosyvoice.yaml").read_text() == YAML
    plain = torch.load(out / "flow.pt", weights_only=True)
    assert plain.keys() == tiny_flow().keys()
    codes, again = CodePair([1, 2], [3, 4, 5]), load_vocoder(out)
    assert (again.speak(codes).samples == vocoder.speak(codes).samples).all()
    (folder / "cosyvoice.yaml").write_text(YAML.replace("num_heads: 2", "num_heads: 3"))
    with pytest.raises(UsageError, match=r"says \(4, 3, 41.67\) heads .* has \(4, 2, 41.67\)"):
        save_vocoder(vocoder, out, like=folder)


def test_one_book_is_refused(folder: Path) -> None:
    torch.save(tiny_flow(tokens=4096), folder / "flow.pt")
    with pytest.raises(UsageError, match="knows 4096 tokens: one book, not both"):
        load_vocoder(folder)
