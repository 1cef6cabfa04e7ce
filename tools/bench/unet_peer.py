"""The velocity network of CosyVoice 1's size, ours and matcha-tts's, with the same weights."""

from typing import Any, NamedTuple

CHANNELS, MEL_BINS = 320, 80
# CosyVoice 1's public recipe: the depth of the released flows.
BLOCKS, MIDDLE, HEADS, HEAD_WIDTH, WIDTH = 4, 12, 8, 64, 256
PEERS = ("einops", "diffusers", "transformers", "rich")
# They ask for other versions of what others need, and for much that their networks do not use.
ALONE = ("matcha-tts==0.0.7.2", "conformer==0.3.2")


class Pair(NamedTuple):
    """Two networks that should say the same."""

    ours: Any
    peer: Any


def pair(blocks: int = BLOCKS, middle: int = MIDDLE) -> Pair:
    """Both in evaluation mode, with the weights that the peer's class begins with."""
    import torch

    from aqaa.audio.torchaudio_shim import ensure

    ensure()  # where torchaudio is there but cannot load, what the peer imports would fail
    from matcha.models.components.decoder import Decoder

    from aqaa.vocoder.estimator import Estimator

    torch.manual_seed(0)
    peer = Decoder(
        CHANNELS,
        MEL_BINS,
        channels=(WIDTH, WIDTH),
        dropout=0.0,
        attention_head_dim=HEAD_WIDTH,
        n_blocks=blocks,
        num_mid_blocks=middle,
        num_heads=HEADS,
        act_fn="gelu",
    ).eval()
    ours = Estimator(
        channels_in=CHANNELS,
        channels_out=MEL_BINS,
        channels=(WIDTH, WIDTH),
        heads=HEADS,
        head_width=HEAD_WIDTH,
        blocks=blocks,
        middle=middle,
    ).eval()
    ours.load_state_dict(peer.state_dict())
    return Pair(ours, peer)
