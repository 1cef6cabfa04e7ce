"""Mel frames to code vectors. Letters: B clips, N codes, W width, D code width, F mel frames."""

from torch import Tensor, nn
from torch.nn import functional as F

from aqaa.layers import ConvAttention
from aqaa.signals import MEL_BINS


class MelEncoder(nn.Module):
    """Log-mel to one vector per code: stacked frames, blocks, a narrow projection."""

    def __init__(self, *, frames_per_code: int, width: int, blocks: int, code_width: int) -> None:
        super().__init__()
        self.frames_per_code = frames_per_code
        self.smooth = nn.Conv1d(MEL_BINS, MEL_BINS, 5, padding=2)
        self.stack = nn.Linear(MEL_BINS * frames_per_code, width)
        self.blocks = nn.ModuleList(ConvAttention(width=width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, code_width)

    def forward(self, mel: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode whole codes.

        Args:
            mel: (B, 80, F) normalised log-mel, F a multiple of ``frames_per_code``.
            mask: (B, F), 1 where a frame is real.

        Returns:
            (B, N, D) vectors and their mask (B, N), N = F / frames_per_code.
        """
        # Masked before the convolution too: a clip gives the same codes alone and in a batch.
        mel = mel * mask[:, None]
        mel = (mel + F.gelu(self.smooth(mel))) * mask[:, None]
        batch, bins, frames = mel.shape
        codes = frames // self.frames_per_code
        x = self.stack(mel.transpose(1, 2).reshape(batch, codes, bins * self.frames_per_code))
        code_mask = mask[:, :: self.frames_per_code]
        for block in self.blocks:
            x = block(x, code_mask)
        return self.project(self.norm(x)), code_mask
