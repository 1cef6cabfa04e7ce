"""One call of the velocity network beside matcha-tts's class, at CosyVoice 1's size.

    python tools/bench/unet.py peer=/path/to/python frames=344 repeats=7 blocks=4 middle=12

Both have the same weights and are called in turns in one process on one thread; the time is the
processor's, which is what the work costs on a shared machine. The ratio is that of one clip of
``frames`` mel frames (344 last 4 s); half and twice as many, and two clips at once, as guidance
calls it, stand under ``ratios``. ``bound`` is how many times faster than the peer a call would be
whose every product ran as fast as a square one does here, if all else took no time. ``equal``: the
velocities agree within 1e-4. ``peer`` is a python with matcha-tts; without it one is set up under
.venv-bench, once. The last line is JSON.
"""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import peers  # noqa: E402
import unet_peer  # noqa: E402
from turns import elsewhere, machine, median_in_turns, timed, told  # noqa: E402

TOLERANCE = 1e-4
SQUARE = 1024


def bench(frames: int, repeats: int, blocks: int, middle: int) -> dict[str, Any]:
    """Compare, then time in turns; returns the record."""
    import torch

    torch.set_num_threads(1)
    nets = unet_peer.pair(blocks, middle)
    sizes = {"one_clip": (1, frames), "half": (1, frames // 4 * 2), "twice": (1, 2 * frames),
             "guided": (2, frames)}  # fmt: skip
    gaps, found = {}, {}
    with torch.inference_mode():
        for name, (clips, length) in sizes.items():
            x, time = torch.randn(clips, unet_peer.CHANNELS, length), torch.full((clips,), 0.3)
            mel, rest = x.split([unet_peer.MEL_BINS, x.shape[1] - unet_peer.MEL_BINS], 1)
            ones = torch.ones(clips, 1, length)
            calls = {
                "ours": lambda x=x, time=time: nets.ours(x, time),
                "peer": lambda m=mel, o=ones, r=rest, t=time: nets.peer(m, o, r, t),
            }
            gaps[name] = float((calls["ours"]() - calls["peer"]()).abs().max())
            found[name] = median_in_turns(calls, repeats)
            shown = ", ".join(f"{who} {1e3 * s:.0f} ms" for who, s in found[name].items())
            print(f"{name}: {clips} x {length} frames: {shown}; apart by {gaps[name]:.1e}")
        gflop = products_gflop(nets.ours, frames)
        square = torch.randn(SQUARE, SQUARE)
        peak = 2 * SQUARE**3 / min(timed(lambda: square @ square) for _ in range(9)) / 1e9
    ratios = {name: round(taken["peer"] / taken["ours"], 2) for name, taken in found.items()}
    share = {who: gflop / seconds / peak for who, seconds in found["one_clip"].items()}
    print(f"a square product runs at {peak:.0f} GFLOP/s; of that ours reaches {share['ours']:.0%}, "
          f"the peer {share['peer']:.0%}, over {gflop:.1f} GFLOP of products a call")  # fmt: skip
    return {
        "bench": "unet",
        "ours": round(found["one_clip"]["ours"], 4),
        "peer": round(found["one_clip"]["peer"], 4),
        "unit": f"CPU s a call, {frames} frames, one thread",
        "ratio": ratios["one_clip"],
        "ratios": ratios,
        "bound": round(1 / share["peer"], 2),
        "share_of_square_product": {who: round(s, 2) for who, s in share.items()},
        "equal": max(gaps.values()) <= TOLERANCE,
        "machine": machine(),
        "versions": {n: version(n) for n in ("torch", "matcha-tts", "diffusers")},
    }


def products_gflop(net: Any, frames: int) -> float:
    """What a call multiplies and adds in products of matrices, attention among them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from aqaa.vocoder.estimator import SelfAttention

    heard: list[int] = []

    def note(layer: Any, given: tuple[Any, ...], out: Any) -> None:
        heard.append(4 * given[0].shape[1] ** 2 * layer.to_q.out_features)

    layers = [m for m in net.modules() if isinstance(m, SelfAttention)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with FlopCounterMode(display=False) as counter:
        net(torch.randn(1, net.channels_in, frames), torch.tensor([0.3]))
    for hook in hooks:
        hook.remove()
    return float(counter.get_total_flops() + sum(heard)) / 1e9  # the counter skips CPU attention


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0 if both said the same."""
    asked = {"peer": "", "frames": "344", "repeats": "7", "blocks": "4", "middle": "12"}
    given = told("unet", argv, asked)
    if (peer := given.pop("peer")) != "here":
        python = peer or peers.python_of("unet", unet_peer.PEERS, alone=unet_peer.ALONE)
        return elsewhere(python, __file__, argv)
    found = bench(**{key: int(value) for key, value in given.items()})
    print(json.dumps(found))
    return int(not found["equal"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
