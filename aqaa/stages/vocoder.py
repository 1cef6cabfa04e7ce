"""Train the voice (paper section 2.3): audio ids to a mel by flow matching, a mel to a waveform.

Letters: B clips, G groups, F = 12 G frames, T samples.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from aqaa.audio.mel import log_mel
from aqaa.data.voice import FlowBatch, WaveformBatch
from aqaa.layers import spread
from aqaa.losses.flow_matching import cosine_time, flow_matching, path
from aqaa.losses.spectral import multi_resolution
from aqaa.signals import GROUP_FRAMES, LINGUISTIC_PER_GROUP, SEMANTIC_PER_GROUP
from aqaa.stages.average import RunningAverage
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.storage import Gather, atomic_folder, in_place
from aqaa.tokenizer.dual import load_book
from aqaa.vocoder.flow import FlowVocoder, pack
from aqaa.vocoder.solver import check
from aqaa.vocoder.waveform import WaveformHead


class Flow(pl.LightningModule):
    """Trains a :class:`FlowVocoder`; its running average is what is exported.

    Args:
        network: partial of the vocoder.
        optimizer: settings.
        average_decay: of the running average of the weights.
        prior_weight: of the regression head's loss.
        start_from_codebooks: start the embeddings from the tokenizers' code vectors.
        steps, guidance, solver: how validation solves the flow, to say how far its mel is off.
    """

    def __init__(
        self,
        *,
        network: Callable[[], FlowVocoder],
        optimizer: OptimizerSettings,
        average_decay: float = 0.99,
        prior_weight: float = 1.0,
        start_from_codebooks: bool = True,
        steps: int = 8,
        guidance: float = 0.0,
        solver: str = "euler",
    ) -> None:
        super().__init__()
        check(solver=solver, steps=steps, guidance=guidance)
        self._way: dict[str, Any] = {"steps": steps, "guidance": guidance, "solver": solver}
        self._network = network
        self._optimizer = optimizer
        self._decay = average_decay
        self._prior_weight = prior_weight
        self._start = start_from_codebooks
        self.flow: Any = None
        self.average: Any = None

    def configure_model(self) -> None:
        """Build the network and its average; nothing on a second call."""
        if self.flow is not None:
            return
        self.flow = self._network()
        if self._start:
            folder = self.trainer.datamodule.source.store.tokenizer  # type: ignore[attr-defined]
            width = self.flow.settings["code_width"]
            vectors = [
                spread(load_book(folder / book).codebook.vectors, width, seed=i)
                for i, book in enumerate(("linguistic", "semantic"))
            ]
            self.flow.conditioning.start_from(*vectors)
        self.average = RunningAverage(network=self.flow, decay=self._decay)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW on the network, not on its average."""
        steps = int(self.trainer.estimated_stepping_batches)
        return self._optimizer.build(self.flow, steps)

    def training_step(self, batch: FlowBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss, terms = self._loss(self.flow, batch)
        self.log_dict({f"train/{k}": v for k, v in terms.items()}, batch_size=len(batch.mel))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: FlowBatch, batch_idx: int) -> None:
        """Move the running average."""
        self.average.follow(self.flow, self.global_step)

    def validation_step(self, batch: FlowBatch, batch_idx: int) -> None:
        """Loss of the running average under fixed noise, and how far the mels it makes are off."""
        _, terms = self._loss(self.average.module, batch)
        if batch_idx == 0:  # many calls: a few clips tell enough
            terms["mel"] = self._off(batch)
        self.log_dict({f"validation/{k}": v for k, v in terms.items()}, batch_size=len(batch.mel))

    def _off(self, batch: FlowBatch) -> Tensor:
        """Mean absolute difference of log-mels, sampled and real, each clip by itself."""
        off = []
        for row, frames in enumerate(batch.mask.sum(1).int().tolist()):
            here, groups = slice(row, row + 1), frames // GROUP_FRAMES
            mel = self.average.module.sample(
                batch.linguistic[here, : LINGUISTIC_PER_GROUP * groups],
                batch.semantic[here, : SEMANTIC_PER_GROUP * groups],
                **self._way,
            )
            off.append((mel - batch.mel[here, :, :frames]).abs().mean())
        return torch.stack(off).mean()

    def _loss(self, flow: FlowVocoder, batch: FlowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        target, mask = pack(batch.mel), batch.mask[:, ::2]
        condition = flow.conditioning(batch.linguistic, batch.semantic, mask)
        time = cosine_time(batch.time)
        point, velocity = path(batch.noise, target, time)
        kept = condition * batch.keep[:, None, None]
        flow_loss = flow_matching(flow.velocity(point, kept, time, mask), velocity, mask)
        distance = (flow.prior(condition) - target).abs() * mask[:, None]
        prior_loss = distance.sum() / (mask.sum() * target.shape[1])
        loss = flow_loss + self._prior_weight * prior_loss
        terms = {"loss": loss, "flow": flow_loss, "prior": prior_loss}
        return loss, {name: term.detach() for name, term in terms.items()}

    def export(self, folder: Path, gather: Gather = in_place) -> None:
        """Write the averaged vocoder's folder."""
        self.average.export(folder, gather)


class Waveform(pl.LightningModule):
    """Trains a :class:`WaveformHead` by spectral losses alone.

    Args:
        network: partial of the head.
        optimizer: settings.
        average_decay: of a running average of the weights, which is then what is checked and
            exported (None: the weights themselves).
        mel_weight: of the log-mel distance.
        resolutions: pairs of STFT sizes, used in turn.
    """

    def __init__(
        self,
        *,
        network: Callable[[], WaveformHead],
        optimizer: OptimizerSettings,
        average_decay: float | None = None,
        mel_weight: float = 2.0,
        resolutions: list[list[int]] | None = None,
    ) -> None:
        super().__init__()
        self._network = network
        self._optimizer = optimizer
        self._decay = average_decay
        self._mel_weight = mel_weight
        self._resolutions = [list(r) for r in resolutions or [[512, 2048], [256, 1024]]]
        self.head: Any = None
        self.average: Any = None

    def configure_model(self) -> None:
        """Build the head and its average; nothing on a second call."""
        if self.head is not None:
            return
        self.head = self._network()
        if self._decay is not None:
            self.average = RunningAverage(network=self.head, decay=self._decay)

    @property
    def best(self) -> WaveformHead:
        """What is checked and exported: the average, if there is one."""
        best: WaveformHead = self.head if self.average is None else self.average.module
        return best

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW on the head."""
        steps = int(self.trainer.estimated_stepping_batches)
        return self._optimizer.build(self.head, steps)

    def training_step(self, batch: WaveformBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        sizes = self._resolutions[self.global_step % len(self._resolutions)]
        loss, terms = self._loss(self.head, batch, sizes)
        self.log_dict({f"train/{k}": v for k, v in terms.items()}, batch_size=len(batch.mel))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: WaveformBatch, batch_idx: int) -> None:
        """Move the running average."""
        if self.average is not None:
            self.average.follow(self.head, self.global_step)

    def validation_step(self, batch: WaveformBatch, batch_idx: int) -> None:
        """Loss on fixed segments, at every resolution."""
        sizes = [size for pair in self._resolutions for size in pair]
        _, terms = self._loss(self.best, batch, sizes)
        self.log_dict({f"validation/{k}": v for k, v in terms.items()}, batch_size=len(batch.mel))

    def _loss(
        self, head: WaveformHead, batch: WaveformBatch, sizes: list[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        samples = head(batch.mel)
        spectral = multi_resolution(samples, batch.samples, sizes)
        mel = (log_mel(samples) - batch.mel).abs().mean()
        loss = spectral + self._mel_weight * mel
        terms = {"loss": loss, "spectral": spectral, "mel": mel}
        return loss, {name: term.detach() for name, term in terms.items()}

    def export(self, folder: Path, gather: Gather = in_place) -> None:
        """Write the folder of the head or of its average."""
        with gather([]) as mine:
            if mine:
                with atomic_folder(folder) as temporary:
                    self.best.save(temporary)
