"""Layers of the full-size flow on frames before channels, where every weight meets one product.

With the channels last a frame is a row: linear layers and convolutions are plain products of
matrices, and nothing is turned between them. Weights keep their released names and shapes; in
evaluation their inputs come first in memory (:func:`lay_out`), the order a product reads them in.
Letters: B clips, F mel frames, C channels, H heads, D head width, K kernel.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ONE = 20.0  # from here on tanh(softplus(x)) is 1 in float32


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` with zeros where the mask has them."""
    return x if mask is None else x * mask


def lay_out(module: nn.Module, *, inputs_first: bool) -> None:
    """Lay out the weights of all linear layers and convolutions for products, or as torch does.

    Training needs torch's own layout: the fused AdamW walks weights and restored averages side by
    side in memory, and gives other numbers without a word where their layouts differ.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | Convolution):
            order = range(layer.weight.dim() - 1, -1, -1)
            weight = layer.weight.data
            turned = weight.permute(*order).contiguous().permute(*order)
            layer.weight.data = turned if inputs_first else weight.contiguous()


class Convolution(nn.Conv1d):
    """A convolution over frames, as one product."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, Cin) -> (B, F', C)."""
        (kernel,), (stride,) = self.kernel_size, self.stride
        if kernel > 1:
            beside = int(self.padding[0])
            x = F.pad(x, (0, 0, beside, beside))
            end = x.shape[1] - kernel + 1
            x = torch.cat([x[:, k : k + end : stride] for k in range(kernel)], 2)
        weight = self.weight.permute(2, 1, 0).flatten(0, 1)  # (K Cin, C)
        return F.linear(x, weight.T, self.bias)


class GroupNormOfFrames(nn.GroupNorm):
    """Group normalisation over real frames only, so that padding changes nothing."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        """(B, F, C), mask (B, F, 1) or None where all frames are real -> (B, F, C)."""
        x = masked(x, mask)
        x = masked(x - self._mean(x, mask), mask)
        scale = self.weight * torch.rsqrt(self._mean(x * x, mask) + self.eps)
        return torch.addcmul(self.bias, x, scale)

    def _mean(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Of each channel's group: (B, F, C), zero behind the mask -> (B, 1, C)."""
        frames = x.shape[1] if mask is None else mask.sum(1, keepdim=True)
        group = x.sum(1).unflatten(1, (self.num_groups, -1))
        mean = group.mean(2, keepdim=True) / frames
        return mean.expand_as(group).reshape(len(x), 1, -1)


def mish(x: Tensor) -> Tensor:
    """Mish, x tanh(softplus(x)), any shape; without gradients by a single exponential."""
    if x.requires_grad:
        return F.mish(x)
    e = x.clamp(max=_ONE).exp_()
    n = e.mul_(e + 2)
    return n.div_(n + 2).mul_(x)


class Gelu(nn.Module):
    """Exact GELU, written over its input where no gradient needs it."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)


def attend(q: Tensor, k: Tensor, v: Tensor, *, heads: int, mask: Tensor | None) -> Tensor:
    """Attention over real frames, (B, F, H D) each, mask (B, F, 1) or None -> (B, F, H D)."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    real = None if mask is None else mask.transpose(1, 2)[:, None].bool()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=real).transpose(1, 2).flatten(2)
