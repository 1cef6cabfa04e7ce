"""Trainings of a tiny full-size vocoder by one process or as one of two: what each rank saw.

Tests call :func:`run` for one process and start ``torchrun -m tests.stages.two_voices`` for two.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from aqaa.data.token_voice import SoundBatch, TokenBatch
from aqaa.stages.adversarial import Adversarial
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.stages.token_flow import TokenFlowTraining
from aqaa.vocoder.discriminators import Discriminators
from aqaa.vocoder.draw import draw
from aqaa.vocoder.token_flow import TokenFlow
from aqaa.vocoder.waveform import WaveformHead

STEPS = 4
FLOW = partial(
    TokenFlow,
    tokens=24,
    encoder={"code_width": 6, "width": 8, "heads": 2, "inner": 12, "layers": 1, "dropout": 0.0},
    estimator={"channels": [8, 8], "heads": 2, "head_width": 4, "blocks": 1, "middle": 1},
    mel_bins=10,
    speaker_width=5,
    regulator_layers=1,
)
HEAD = partial(WaveformHead, channels=8, inner=16, blocks=1, fft_size=1024, hop_samples=256)
JUDGES = partial(
    Discriminators, periods=(2, 3), period_channels=(2, 3), resolutions=[(256, 64, 256)],
    resolution_channels=(2, 2),
)  # fmt: skip


class Tokens:
    """Random ids and mels, unequally long; a batch of each rank's own."""

    speakers = None

    def batch(self, step: int) -> TokenBatch:
        generator = torch.Generator().manual_seed(step)
        counts, frames = [10, 5], [20, 10]
        tokens = torch.randint(24, (2, 10), generator=generator)
        mel = torch.randn(2, 10, 20, generator=generator)
        chance = draw(mel, frames, generator=generator)
        return TokenBatch(tokens, counts, mel, frames, None, None, chance)

    def validation(self) -> list[Any]:
        return []


class Sounds:
    """Noise under a random envelope; ``rows`` halves make a batch."""

    pitch = False

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def batch(self, step: int) -> SoundBatch:
        mels, sounds = [], []
        for row in range(step * self.rows, (step + 1) * self.rows):
            generator = torch.Generator().manual_seed(row)
            mels.append(torch.randn(80, 8, generator=generator) - 3)
            sounds.append(0.1 * torch.randn(2048, generator=generator))
        return SoundBatch(torch.stack(mels), torch.stack(sounds), torch.zeros(self.rows, 8), step)

    def validation(self) -> list[Any]:
        return []


def run(name: str, folder: Path, *, ranks: int, **options: Any) -> dict[str, Any]:
    """One training of ``flow`` or ``head``; a step takes two batches, or one of twice the rows."""
    import lightning.pytorch as pl

    from aqaa.data.module import DataModule
    from aqaa.runtime.strategy import gather_of

    pl.seed_everything(0, verbose=False)
    settings = OptimizerSettings(lr=0.05, algorithm="sgd", warmup_steps=2, weight_decay=0.0)
    stage: Any
    source: Any
    if name == "flow":
        stage, source = TokenFlowTraining(network=FLOW, optimizer=settings), Tokens()
    else:
        small = {"mel": 1.0, "spectral": options.pop("spectral", 0.0)}
        stage = Adversarial(
            network=HEAD, judges=JUDGES, optimizer=settings, weights=small,
            **{"alone_steps": 1, **options},
        )  # fmt: skip
        source = Sounds(2 if ranks > 1 else 4)
    accumulate = 2 if name == "flow" and ranks == 1 else 1
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        max_steps=STEPS,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    seen: list[float] = []
    step = stage.training_step

    def noted(batch: Any, batch_idx: int) -> Any:
        seen.append(float((loss := step(batch, batch_idx)).detach()))
        return loss

    stage.training_step = noted
    trainer.fit(stage, DataModule(source, accumulate=accumulate))
    stage.export(folder / name, gather_of(trainer.strategy))
    judges = {} if name == "flow" else stage.judges.state_dict()
    sums = {k: float(v.double().sum()) for k, v in judges.items()}
    return {"losses": seen, "judges": sums, "steps": trainer.global_step}


def main() -> None:
    """Every training, one after the other, as this rank of a torchrun."""
    folder = Path(sys.argv[1])
    for name in ("flow", "head"):
        seen = run(name, folder, ranks=2)
        (folder / f"{name}.{os.environ['RANK']}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
