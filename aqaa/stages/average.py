"""The running average of a network's weights, which is what a voice is exported from.

Letters: none; whatever shapes the network has.
"""

from pathlib import Path

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from aqaa.storage import Gather, atomic_folder, in_place


class RunningAverage(AveragedModel):
    """A copy without gradients that follows a network; saved and resumed with the stage.

    Args:
        network: what it follows; the first step copies it.
        decay: share of the old average that each step keeps.
    """

    def __init__(self, *, network: nn.Module, decay: float) -> None:
        super().__init__(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.requires_grad_(False)

    def follow(self, network: nn.Module, step: int) -> None:
        """Move if the optimizer has stepped since; batches that only accumulate move nothing."""
        if step > int(self.n_averaged):
            self.update_parameters(network)

    def export(self, folder: Path, gather: Gather = in_place) -> None:
        """Write the average's folder, which one rank does; all must come here."""
        with gather([]) as mine:
            if mine:
                with atomic_folder(folder) as temporary:
                    self.module.save(temporary)  # type: ignore[operator]
