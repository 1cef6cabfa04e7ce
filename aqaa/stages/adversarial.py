"""Train a waveform head against judges (HiFi-GAN): a mel at 22.05 kHz to sound.

Two networks with an optimizer each, which Lightning leaves to the stage. A step of the run is one
of the head: the judges' own are not counted, so that schedules, saves and resumes go by one number.
Gradients are asked for network by network and averaged over ranks here: a loss of the head then
leaves nothing behind in the judges, and DDP's own exchange, which expects all parameters in every
backward pass, is not waited for.

Letters: B clips, M mel bins, F mel frames, T = 256 F samples.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from aqaa.audio.vocoder_mel import vocoder_mel
from aqaa.data.token_voice import SoundBatch
from aqaa.errors import UsageError
from aqaa.losses.adversarial import (
    discriminator_loss,
    feature_matching,
    generator_loss,
    mel_distance,
)
from aqaa.losses.spectral import multi_resolution
from aqaa.ranks import ranks, total
from aqaa.release.start import start_from as begin_at
from aqaa.stages.average import RunningAverage
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.storage import Gather, in_place
from aqaa.vocoder.discriminators import Discriminators
from aqaa.vocoder.hift import Hift
from aqaa.vocoder.waveform import WaveformHead

# Weights of the terms: HiFi-GAN's, and our own of the spectra (whole band) and the pitch in Hz.
WEIGHTS = {"mel": 45.0, "spectral": 10.0, "features": 2.0, "judges": 1.0, "pitch": 0.1}
SPECTRA = (512, 1024, 2048)


class Adversarial(pl.LightningModule):
    """Trains a :class:`WaveformHead` or a :class:`Hift`; its running average is exported.

    Args:
        network: partial of the head.
        judges: partial of the discriminators.
        optimizer: settings, the same for both.
        alone_steps: the head learns spectra alone before the judges set in.
        largest_gradient: norm that each network's gradient is cut to (None: no matter).
        average_decay: of the running average of the head's weights.
        weights: of the terms of the head's loss, by name; those of :data:`WEIGHTS` not named here.
        start_from: folder of a head to go on from, ours or a released vocoder's (None: at chance).
    """

    def __init__(
        self,
        *,
        network: Callable[[], WaveformHead | Hift],
        judges: Callable[[], Discriminators],
        optimizer: OptimizerSettings,
        alone_steps: int = 1000,
        largest_gradient: float | None = None,
        average_decay: float = 0.999,
        weights: Mapping[str, float] | None = None,
        start_from: str | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        if unknown := sorted(set(weights or {}) - set(WEIGHTS)):
            raise UsageError(f"there is no term {unknown[0]}: weights are of {', '.join(WEIGHTS)}")
        self._network, self._of_judges = network, judges
        self._optimizer = optimizer
        self._alone_steps = alone_steps
        self._largest_gradient = largest_gradient
        self._decay = average_decay
        self._weights = {**WEIGHTS, **(weights or {})}
        self._start = start_from
        self.head: Any = None
        self.judges: Any = None
        self.average: Any = None

    def configure_model(self) -> None:
        """Build head, average and judges; nothing on a second call."""
        if self.head is not None:
            return
        self.head, self.judges = self._network(), self._of_judges()
        if isinstance(self.head, Hift) and not self.trainer.datamodule.source.pitch:  # type: ignore[attr-defined]
            raise UsageError("a HiFT head learns the pitch, which data.pitch=false leaves out")
        if self._start is not None:
            begin_at(self.head, self._start)
        self.head.train()
        self.average = RunningAverage(network=self.head, decay=self._decay)

    def configure_optimizers(self) -> list[OptimizerLRSchedulerConfig]:
        """AdamW on the head and on the judges, whose schedule begins when they do."""
        steps = int(self.trainer.estimated_stepping_batches)
        judged = max(1, steps - self._alone_steps)
        return [self._optimizer.build(self.head, steps), self._optimizer.build(self.judges, judged)]

    def training_step(self, batch: SoundBatch, batch_idx: int) -> Tensor:
        """The judges' step, once they have set in, then the head's."""
        made, pitch = sound_of(self.head, batch, taught=True)
        judged = self.global_step >= self._alone_steps
        terms = self._teach_judges(batch.samples, made.detach()) if judged else {}
        loss, more = self._loss(made, pitch, batch, judged=judged)
        self._step(0, self.head, loss)
        terms |= more
        self.log_dict(
            {f"train/{k}": v.detach() for k, v in terms.items()}, batch_size=len(batch.mel)
        )
        return loss.detach()

    def _teach_judges(self, real: Tensor, made: Tensor) -> dict[str, Tensor]:
        """One step of the judges on real and made samples (B, T)."""
        scores = [[verdict.score for verdict in self.judges(sound)] for sound in (real, made)]
        loss = discriminator_loss(*scores)
        self._step(1, self.judges, loss)
        return {"judged": loss}

    def _step(self, number: int, network: nn.Module, loss: Tensor) -> None:
        """One step of a network and of its schedule; the head's, number 0, is the one counted."""
        parameters = [p for p in network.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        average_gradients(parameters)
        if self._largest_gradient is not None:
            nn.utils.clip_grad_norm_(parameters, self._largest_gradient)
        optimizer = self.optimizers()[number]  # type: ignore[index]
        (optimizer.optimizer if number else optimizer).step()  # Lightning counts its own's steps
        self.lr_schedulers()[number].step()  # type: ignore[index]

    def _loss(
        self, made: Tensor, pitch: Tensor | None, batch: SoundBatch, *, judged: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the head, and its terms."""
        terms = {
            "mel": mel_distance(vocoder_mel(made), vocoder_mel(batch.samples)),
            "spectral": multi_resolution(made, batch.samples, list(SPECTRA)),
        }
        if pitch is not None:
            terms["pitch"] = (pitch - batch.pitch).abs().mean()
        if judged:
            ours = self.judges(made)
            with torch.no_grad():
                real = self.judges(batch.samples)
            terms["judges"] = generator_loss([v.score for v in ours])
            terms["features"] = feature_matching(
                [v.features for v in real], [v.features for v in ours]
            )
        loss = torch.stack([self._weights[name] * term for name, term in terms.items()]).sum()
        return loss, {"loss": loss, **terms}

    def on_train_batch_end(self, outputs: Any, batch: SoundBatch, batch_idx: int) -> None:
        """Move the running average."""
        self.average.follow(self.head, self.global_step)

    def validation_step(self, batch: SoundBatch, batch_idx: int) -> None:
        """Distance of the running average's sound on fixed segments, with its own pitch."""
        made, pitch = sound_of(self.average.module, batch, taught=False)
        _, terms = self._loss(made, pitch, batch, judged=False)
        self.log_dict({f"validation/{k}": v for k, v in terms.items()}, batch_size=len(batch.mel))

    def export(self, folder: Path, gather: Gather = in_place) -> None:
        """Write the averaged head's folder."""
        self.average.export(folder, gather)


def sound_of(
    head: WaveformHead | Hift, batch: SoundBatch, *, taught: bool
) -> tuple[Tensor, Tensor | None]:
    """What a head makes of a mel: samples (B, T), and the pitch (B, F) it hears, if it does.

    Args:
        head: either kind.
        batch: mel, pitch and the seed of the source's noise.
        taught: the harmonic source has the true pitch, so that harmonics lie right from the first
            step on; else the one the head hears.
    """
    if not isinstance(head, Hift):
        return head(batch.mel), None
    pitch = head.f0(batch.mel)
    generator = torch.Generator().manual_seed(batch.seed)
    source = head.m_source(batch.pitch if taught else pitch, generator)
    return head.decode(batch.mel, source), pitch


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """The mean gradient over all ranks, in one exchange; every rank must come here."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if ranks() == 1 or not gradients:
        return
    mean = total(torch.cat([g.flatten() for g in gradients])) / ranks()
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
