"""The waveform head beside the `vocos` package, at its size and with the same weights.

    python tools/bench/waveform.py peer=/path/to/python frames=400 channels=512 inner=1536 blocks=8

Both turn the same log-mel of 80 bins into sound at 16 kHz (100 frames a second), called in turns in
one process on one thread; the time is the processor's. ``equal``: the sound agrees within 1e-4 of
its peak; the peer's norms have another epsilon (1e-6 against 1e-5), which is set to ours for that.
``peer`` is a python with vocos; without it one is set up, once. The last line is JSON.
"""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import peers  # noqa: E402
from turns import elsewhere, machine, median_in_turns, told  # noqa: E402

PEERS = ("numpy", "scipy", "einops", "pyyaml", "huggingface_hub")
ALONE = ("vocos==0.1.0", "encodec==0.1.1")
FRAMES_PER_S, FFT_SIZE, HOP, BINS = 100, 640, 160, 80
TOLERANCE = 1e-4
# The peer's names after ours; what is inside a block first.
NAMES = {"convolution": "dwconv", "widen": "pwconv1", "narrow": "pwconv2", "scale": "gamma",
         "blocks": "convnext", "norm_in": "norm", "norm_out": "final_layer_norm"}  # fmt: skip


def pair(channels: int, inner: int, blocks: int) -> tuple[Any, Any]:
    """Our head, and the peer's as one call, with the same weights."""
    import torch

    from aqaa.audio.torchaudio_shim import ensure

    ensure()  # vocos imports torchaudio where it is there
    from vocos.heads import ISTFTHead
    from vocos.models import VocosBackbone

    from aqaa.vocoder.waveform import WaveformHead

    torch.manual_seed(0)
    ours = WaveformHead(channels=channels, inner=inner, blocks=blocks, fft_size=FFT_SIZE).eval()
    body = VocosBackbone(BINS, channels, inner, blocks).eval()
    head = ISTFTHead(channels, FFT_SIZE, HOP, padding="same").eval()
    state = ours.state_dict()
    head.out.load_state_dict({"weight": state.pop("project.weight"),
                              "bias": state.pop("project.bias")})  # fmt: skip
    body.load_state_dict({
        ".".join(NAMES.get(part, part) for part in name.split(".")): tensor
        for name, tensor in state.items()
    })  # fmt: skip
    for layer in body.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            layer.eps = 1e-5
    return ours, lambda mel: head(body(mel))


def bench(frames: int, repeats: int, channels: int, inner: int, blocks: int) -> dict[str, Any]:
    """Compare, then time in turns; returns the record."""
    import torch

    torch.set_num_threads(1)
    ours, peer = pair(channels, inner, blocks)
    mel = torch.randn(1, BINS, frames)
    calls = {"ours": lambda: ours(2.5 * mel - 3), "peer": lambda: peer(mel)}
    with torch.inference_mode():
        sound, other = calls["ours"](), calls["peer"]()
        gap = float((sound - other).abs().max() / other.abs().max())
        taken = median_in_turns(calls, repeats)
    factors = {who: seconds * FRAMES_PER_S / frames for who, seconds in taken.items()}
    return {
        "bench": "waveform",
        "ours": round(factors["ours"], 4),
        "peer": round(factors["peer"], 4),
        "unit": "CPU s per s of sound, one thread",
        "ratio": round(taken["peer"] / taken["ours"], 2),
        "gap": gap,
        "equal": gap <= TOLERANCE,
        "machine": machine(),
        "versions": {n: version(n) for n in ("torch", "vocos")},
    }


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0 if both gave the same sound."""
    asked = {"peer": "", "frames": "400", "repeats": "9", "channels": "512", "inner": "1536",
             "blocks": "8"}  # fmt: skip
    given = told("waveform", argv, asked)
    if (peer := given.pop("peer")) != "here":
        python = peer or peers.python_of("waveform", PEERS, alone=ALONE)
        return elsewhere(python, __file__, argv)
    found = bench(**{key: int(value) for key, value in given.items()})
    print(json.dumps(found))
    return int(not found["equal"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
