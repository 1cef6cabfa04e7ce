"""Loss terms of the tokenizers. Letters: B clips, N codes, D code width, C mel bins, F frames."""

from torch import Tensor


def commitment(z: Tensor, quantised: Tensor, mask: Tensor) -> Tensor:
    """Mean squared distance of the encoder's vectors to their codes (VQ-VAE, third term).

    Args:
        z: (B, N, D) encoder output.
        quantised: (B, N, D) chosen code vectors; no gradient flows into them.
        mask: (B, N), 1 where a code is real.
    """
    squared = (z - quantised.detach()).pow(2).mean(-1)
    return (squared * mask).sum() / mask.sum()


def mel_distance(mel: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute log-mel distance over real frames; (B, C, F), (B, C, F), (B, F) -> scalar."""
    return ((mel - target).abs() * mask[:, None]).sum() / (mask.sum() * mel.shape[1])
