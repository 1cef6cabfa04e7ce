"""Train the full-size flow (paper section 2.3): interleaved audio ids to a mel at 22.05 kHz.

Letters: B clips.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from aqaa.data.token_voice import TokenBatch
from aqaa.release.start import start_from as begin_at
from aqaa.stages.average import RunningAverage
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.storage import Gather, in_place
from aqaa.vocoder.solver import check
from aqaa.vocoder.token_flow import TokenFlow


class TokenFlowTraining(pl.LightningModule):
    """Trains a :class:`TokenFlow`; its running average is what is checked and exported.

    Args:
        network: partial of the flow.
        optimizer: settings.
        average_decay: of the running average of the weights.
        prompt_in_loss: count the frames that a prompt gives away too, as CosyVoice does.
        start_from: folder of a flow to go on from, ours or a released vocoder's (None: at chance).
        steps, guidance, solver: how validation solves the flow, to say how far its mel is off.
    """

    def __init__(
        self,
        *,
        network: Callable[[], TokenFlow],
        optimizer: OptimizerSettings,
        average_decay: float = 0.999,
        prompt_in_loss: bool = False,
        start_from: str | None = None,
        steps: int = 10,
        guidance: float = 0.7,
        solver: str = "euler",
    ) -> None:
        super().__init__()
        check(solver=solver, steps=steps, guidance=guidance)
        self._way: dict[str, Any] = {"steps": steps, "guidance": guidance, "solver": solver}
        self._network = network
        self._optimizer = optimizer
        self._decay = average_decay
        self._prompt_in_loss = prompt_in_loss
        self._start = start_from
        self.flow: Any = None
        self.average: Any = None

    def configure_model(self) -> None:
        """Build the flow and its average; nothing on a second call."""
        if self.flow is not None:
            return
        self.flow = self._network()
        if self._start is not None:
            begin_at(self.flow, self._start)
        if self.trainer.datamodule.source.speakers is None:  # type: ignore[attr-defined]
            # Nothing teaches it, and ranks would wait for its gradient.
            self.flow.spk_embed_affine_layer.requires_grad_(False)
        self.flow.train()
        self.average = RunningAverage(network=self.flow, decay=self._decay)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW on the flow, not on its average."""
        return self._optimizer.build(self.flow, int(self.trainer.estimated_stepping_batches))

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss = self._loss(self.flow, batch)
        self.log("train/loss", loss.detach(), batch_size=len(batch.tokens))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: TokenBatch, batch_idx: int) -> None:
        """Move the running average."""
        self.average.follow(self.flow, self.global_step)

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Loss of the running average under fixed chance, and how far the mels it makes are off."""
        loss = self._loss(self.average.module, batch)
        self.log("validation/loss", loss, batch_size=len(batch.tokens))
        if batch_idx == 0:  # many calls: a few clips tell enough
            self.log("validation/mel", self._off(batch), batch_size=len(batch.tokens))

    def _off(self, batch: TokenBatch) -> Tensor:
        """Mean absolute difference of log-mels, sampled and real, each clip by itself."""
        flow, off = self.average.module, []
        for row, (count, frames) in enumerate(
            zip(batch.token_counts, batch.frame_counts, strict=True)
        ):
            here = slice(row, row + 1)
            speaker = None if batch.speaker is None else batch.speaker[here]
            noise = batch.draw.noise[here, :, :frames]
            tokens = batch.tokens[here, :count]
            mel = flow.sample(tokens, speaker=speaker, noise=noise, **self._way)
            off.append((mel - batch.mel[here, :, :frames]).abs().mean())
        return torch.stack(off).mean()

    def _loss(self, flow: TokenFlow, batch: TokenBatch) -> Tensor:
        loss: Tensor = flow(
            batch.tokens,
            batch.mel,
            token_counts=batch.token_counts,
            frame_counts=batch.frame_counts,
            draw=batch.draw,
            speaker=batch.speaker,
            heard=batch.heard,
            prompt_in_loss=self._prompt_in_loss,
        )
        return loss

    def export(self, folder: Path, gather: Gather = in_place) -> None:
        """Write the averaged flow's folder."""
        self.average.export(folder, gather)
