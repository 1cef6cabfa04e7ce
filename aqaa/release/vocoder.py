"""The released vocoder: CosyVoice 1's U-Net flow and HiFT, as Step-Audio-TTS-3B ships them.

Letters: none of its own; states map the released names to tensors.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from aqaa.errors import UsageError
from aqaa.release.cosyvoice_yaml import VocoderNumbers
from aqaa.release.foreign import expect
from aqaa.release.strict import State, count, fill, read_state, shape_of
from aqaa.signals import LINGUISTIC_CODES, SEMANTIC_CODES, VOCODER_RATE_HZ
from aqaa.storage import atomic_folder
from aqaa.vocoder.hift import Hift
from aqaa.vocoder.token_flow import TOKEN_RATE_HZ, TokenFlow
from aqaa.vocoder.token_vocoder import TokenVocoder

FLOW = "the flow of Step-Audio's vocoder"
HEAD = "the HiFT head of Step-Audio's vocoder"
RATE_TOLERANCE_HZ = 0.05  # 125/3 is written 41.67
_WEIGHT_NORM = {"parametrizations.weight.original0": "weight_g",
                "parametrizations.weight.original1": "weight_v"}  # fmt: skip


def flow_from_state(
    state: State,
    *,
    encoder_heads: int,
    unet_heads: int,
    token_rate_hz: float = TOKEN_RATE_HZ,
    ignore: Collection[str] = (),
) -> TokenFlow:
    """Build the flow from tensors of the released names, in float32 and evaluation mode.

    Args:
        state: names to tensors; every size is read from them.
        encoder_heads: attention heads of the token encoder.
        unet_heads: attention heads of the U-Net.
        token_rate_hz: tokens a second.
        ignore: prefixes of tensors that are there and not needed.

    Raises:
        UsageError: another kind of vocoder; a tensor missing, unknown, misshapen or not finite.
    """
    expect(state, start="decoder.estimator.", wanted=FLOW)
    if not token_rate_hz > 0:
        raise UsageError(f"token_rate_hz is {token_rate_hz}: it must be above 0")
    settings = _flow_settings(state, encoder_heads, unet_heads)
    return fill(
        lambda: TokenFlow(token_rate_hz=token_rate_hz, **settings), state, what=FLOW, ignore=ignore
    )


def _flow_settings(state: State, encoder_heads: int, unet_heads: int) -> dict[str, Any]:
    """Every size of a flow, from the shapes of its tensors."""

    def shape(name: str) -> tuple[int, ...]:
        return shape_of(state, name, FLOW)

    unet = "decoder.estimator"
    width, code_width = shape("encoder.embed.out.0.weight")
    heads = shape("encoder.encoders.0.self_attn.pos_bias_u")[0]
    if heads != encoder_heads:
        raise UsageError(f"encoder_heads is {encoder_heads}, the tensors have {heads}")
    inner = shape(f"{unet}.mid_blocks.0.1.0.attn1.to_q.weight")[0]
    if unet_heads < 1 or inner % unet_heads:
        raise UsageError(f"unet_heads is {unet_heads}, which does not divide the width {inner}")
    levels = range(count(state, f"{unet}.down_blocks"))
    speaker = shape("spk_embed_affine_layer.weight")
    return {
        "tokens": shape("input_embedding.weight")[0],
        "mel_bins": speaker[0],
        "speaker_width": speaker[1],
        "regulator_layers": count(state, "length_regulator.model") // 2,
        "encoder": {
            "code_width": code_width,
            "width": width,
            "heads": heads,
            "inner": shape("encoder.encoders.0.feed_forward.w_1.weight")[0],
            "layers": count(state, "encoder.encoders"),
        },
        "estimator": {
            "channels": [shape(f"{unet}.down_blocks.{i}.0.res_conv.weight")[0] for i in levels],
            "heads": unet_heads,
            "head_width": inner // unet_heads,
            "blocks": count(state, f"{unet}.mid_blocks.0.1"),
            "middle": count(state, f"{unet}.mid_blocks"),
        },
    }


def waveform_from_state(state: State, *, ignore: Collection[str] = ()) -> Hift:
    """Build the waveform head from tensors of the released names, in float32 and evaluation mode.

    Args:
        state: names to tensors; weight norm may be spelt ``weight_g``, ``weight_v`` or
            ``parametrizations.weight.original0``, ``1``.
        ignore: prefixes of tensors that are there and not needed.

    Raises:
        UsageError: another kind of head; a tensor missing, unknown, misshapen or not finite.
    """
    expect(state, start="f0_predictor.", wanted=HEAD)
    ours = {_spelt(name): tensor for name, tensor in state.items()}
    settings = _head_settings(ours)
    return fill(lambda: Hift(**settings), ours, what=HEAD, ignore=ignore)


def _spelt(name: str) -> str:
    """A tensor's name with the older spelling of weight norm."""
    for new, old in _WEIGHT_NORM.items():
        if name.endswith(new):
            return name.removesuffix(new) + old
    return name


def _head_settings(state: State) -> dict[str, Any]:
    """Every size of a head; a step's kernel is twice its rate, an FFT is four hops."""

    def shape(name: str) -> tuple[int, ...]:
        return shape_of(state, name, HEAD)

    steps = count(state, "ups")
    ups = [shape(f"ups.{i}.weight_v")[2] for i in range(steps)]
    if steps != 2 or any(kernel % 2 for kernel in ups):
        raise UsageError(
            f"this is a HiFT head with kernels {ups} on its way up, such as CosyVoice 2's and "
            f"Step-Audio-EditX's for 24 kHz; {HEAD} has two even ones and makes 22.05 kHz"
        )
    channels, mel_bins, _ = shape("conv_pre.weight_v")

    def kernels(blocks: str, number: int) -> list[int]:
        return [shape(f"{blocks}.{i}.convs1.0.weight_v")[2] for i in range(number)]

    return {
        "channels": channels,
        "mel_bins": mel_bins,
        "rates": [kernel // 2 for kernel in ups],
        "fft_size": shape("conv_post.weight_v")[0] - 2,
        "kernels": kernels("resblocks", count(state, "resblocks") // steps),
        "source_kernels": kernels("source_resblocks", steps),
        "dilations": count(state, "resblocks.0.convs1"),
        "harmonics": shape("m_source.l_linear.weight")[1] - 1,
        "pitch_channels": shape("f0_predictor.condnet.0.weight_v")[0],
        "pitch_layers": count(state, "f0_predictor.condnet"),
    }


def load_vocoder(
    folder: str | Path, *, token_rate_hz: float | None = None, ignore: Collection[str] = ()
) -> TokenVocoder:
    """Load a released vocoder folder: cosyvoice.yaml, flow.pt, hift.pt; nothing of it is run.

    A campplus.onnx beside them, the network that hears who speaks, is neither read nor needed: the
    voice speaks as no one in particular, or as whoever's vector (192 numbers) it is given. Nor is
    the folder's copy of the semantic tokenizer.

    Args:
        folder: such as ``CosyVoice-300M-25Hz`` of Step-Audio-TTS-3B.
        token_rate_hz: instead of what cosyvoice.yaml says.
        ignore: prefixes of tensors that are there and not needed.

    Raises:
        UsageError: a file is missing, damaged or of another kind of vocoder.
    """
    folder = Path(folder)
    state = read_state(folder / "flow.pt")
    expect(state, start="decoder.estimator.", wanted=FLOW)  # before its rates, which say less
    numbers = VocoderNumbers.read(folder / "cosyvoice.yaml")
    rate_hz = numbers.token_rate_hz if token_rate_hz is None else token_rate_hz
    if abs(rate_hz - TOKEN_RATE_HZ) > RATE_TOLERANCE_HZ:
        raise UsageError(
            f"{folder} is a vocoder for {rate_hz:g} tokens a second, not for both books "
            f"interleaved at {TOKEN_RATE_HZ:.2f}; if that is not so, give token_rate_hz"
        )
    if numbers.rate_hz != VOCODER_RATE_HZ:
        raise UsageError(f"{folder} makes sound at {numbers.rate_hz} Hz, not {VOCODER_RATE_HZ}")
    flow = flow_from_state(
        state,
        encoder_heads=numbers.encoder_heads,
        unet_heads=numbers.unet_heads,
        token_rate_hz=rate_hz,
        ignore=ignore,
    )
    rows, books = flow.input_embedding.num_embeddings, LINGUISTIC_CODES + SEMANTIC_CODES
    if rows < books:
        raise UsageError(f"{folder / 'flow.pt'} knows {rows} tokens: one book, not both ({books})")
    # A checkpoint of the adversarial training names the head among others.
    head = {n.removeprefix("generator."): t for n, t in read_state(folder / "hift.pt").items()}
    return TokenVocoder(
        flow, waveform_from_state(head, ignore=ignore), guidance=numbers.guidance
    )


def save_vocoder(vocoder: TokenVocoder, folder: str | Path, *, like: str | Path) -> None:
    """Write a vocoder as others read it: flow.pt, hift.pt, and the cosyvoice.yaml of its origin.

    Args:
        vocoder: as :func:`load_vocoder` gave it, and perhaps trained on.
        folder: made as a whole, with our manifest beside the three files.
        like: the folder it was loaded from, whose cosyvoice.yaml tells others how to build it.

    Raises:
        UsageError: that file says other numbers than the vocoder has, the head is no HiFT, or
            nothing can be written.
    """
    if not isinstance(vocoder.head, Hift):
        raise UsageError(f"a {type(vocoder.head).__name__} has no released format: it needs a Hift")
    origin = Path(like) / "cosyvoice.yaml"
    numbers, flow = VocoderNumbers.read(origin), vocoder.flow
    said = (numbers.encoder_heads, numbers.unet_heads, numbers.token_rate_hz)
    has = (flow.settings["encoder"].get("heads", 8), flow.settings["estimator"].get("heads", 8))
    if said != (*has, flow.token_rate_hz):
        raise UsageError(
            f"{origin} says {said} heads of encoder and U-Net and tokens a second, the vocoder "
            f"has {(*has, flow.token_rate_hz)}"
        )
    with atomic_folder(folder) as temporary:
        shutil.copyfile(origin, temporary / "cosyvoice.yaml")
        for name, module in (("flow.pt", flow), ("hift.pt", vocoder.head)):
            state = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
            torch.save(state, temporary / name)
