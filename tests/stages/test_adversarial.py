"""A waveform head against judges: each step by hand, its count, its resume, its ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from aqaa.audio.vocoder_mel import vocoder_mel
from aqaa.errors import UsageError
from aqaa.losses.adversarial import discriminator_loss, feature_matching, generator_loss
from aqaa.losses.spectral import multi_resolution
from aqaa.stages.adversarial import Adversarial
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.vocoder.hift import Hift
from aqaa.vocoder.waveform import WaveformHead
from tests.conftest import ROOT, Chain
from tests.runs import At, assert_same_run, interrupt, train
from tests.runtime.two_ranks import changed
from tests.stages import two_voices
from tests.stages.two_voices import HEAD, JUDGES, STEPS, Sounds

TINY_JUDGES = (
    "stage.judges.period_channels=[2,3]",
    "stage.judges.resolution_channels=[2,2]",
)


def words(kind: str, chain: Chain, root: Path, *more: str) -> list[str]:
    """The command line of a tiny adversarial training."""
    return [
        *("vocoder", f"preset=speech/vocoder_{kind}", f"vocoder={kind}_tiny", f"run.root={root}"),
        *(f"run.name={kind}", f"parents.corpus={chain / 'corpus'}", "data.manifests=[answers]"),
        *("run.steps=6", "run.threads=1", "run.save_every_s=1000", "data.batch=2"),
        *("stage.alone_steps=2", "trainer.log_every_n_steps=1", "trainer.val_check_interval=3"),
        *(*TINY_JUDGES, *more),
    ]


@pytest.mark.parametrize("largest", [None, 0.05])
def test_the_steps_by_hand(largest: float | None, tmp_path: Path) -> None:
    found = two_voices.run("head", tmp_path, ranks=1, largest_gradient=largest, spectral=0.2)
    pl.seed_everything(0, verbose=False)
    head, judges, source = HEAD(), JUDGES(), Sounds(4)
    losses = []
    for step in range(STEPS):
        batch, judged = source.batch(step), step >= 1
        made = head(batch.mel)
        if judged:
            scores = [[v.score for v in judges(x)] for x in (batch.samples, made.detach())]
            descend(judges, discriminator_loss(*scores), step - 1, STEPS - 1, largest)
        mels = vocoder_mel(made), vocoder_mel(batch.samples)
        loss = (mels[0] - mels[1]).abs().mean()
        loss = loss + 0.2 * multi_resolution(made, batch.samples, [512, 1024, 2048])
        if judged:
            ours, real = judges(made), judges(batch.samples)
            loss = loss + generator_loss([v.score for v in ours])
            features = [[v.features for v in verdicts] for verdicts in (real, ours)]
            loss = loss + 2 * feature_matching(*features)
        descend(head, loss, step, STEPS, largest)
        losses.append(float(loss.detach()))
    assert found["losses"] == pytest.approx(losses, abs=1e-5)
    assert found["steps"] == STEPS
    for name, value in judges.state_dict().items():
        assert found["judges"][name] == pytest.approx(float(value.double().sum()), abs=1e-5), name


def descend(
    network: torch.nn.Module, loss: torch.Tensor, step: int, steps: int, largest: float | None
) -> None:
    """Gradient descent by hand, at the rate of a step."""
    rate = 0.05 * OptimizerSettings(lr=0.05, warmup_steps=2).factor(step, steps)
    network.zero_grad()
    loss.backward(retain_graph=True)
    gradients = [p.grad for p in network.parameters()]
    norm = torch.stack([g.norm() for g in gradients]).norm()
    shrink = 1.0 if largest is None else min(1.0, largest / (float(norm) + 1e-6))
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter -= rate * shrink * gradient


def test_judges_wait_while_the_head_is_alone(tmp_path: Path) -> None:
    fresh = two_voices.run("head", tmp_path, ranks=1, alone_steps=STEPS)
    pl.seed_everything(0, verbose=False)
    HEAD()
    untouched = {k: float(v.double().sum()) for k, v in JUDGES().state_dict().items()}
    assert fresh["judges"] == untouched


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """One launch of two processes, for the flow's test too."""
    folder = tmp_path_factory.mktemp("two_voices")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.stages.two_voices", str(folder)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    read = {
        name: [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]
        for name in ("flow", "head")
    }
    return folder, read


@pytest.mark.parametrize("name", ["flow", "head"])
def test_two_processes_are_one(name: str, both: Any, tmp_path: Path) -> None:
    folder, seen = both
    alone = two_voices.run(name, tmp_path, ranks=1)
    pairs = list(zip(*(rank["losses"] for rank in seen[name]), strict=True))
    if name == "flow":  # one process takes the batches of both, one after the other
        together = [loss for pair in pairs for loss in pair]
        assert alone["losses"] == pytest.approx(together, abs=1e-5)
    else:  # one process takes the rows of both at once
        assert alone["losses"] == pytest.approx([sum(pair) / 2 for pair in pairs], abs=1e-5)
    assert changed(tmp_path / name, folder / name) < 1e-5
    assert [rank["steps"] for rank in seen[name]] == [STEPS] * 2
    assert seen[name][0]["judges"] == seen[name][1]["judges"]


@pytest.mark.parametrize("kind", ["vocos", "hift"])
def test_a_resumed_run_is_the_unbroken_one(
    kind: str, chain: Chain, tmp_path: Path, after_step: dict[str, Any]
) -> None:
    whole = train(words(kind, chain, tmp_path / "whole"))
    cut = words(kind, chain, tmp_path / "cut")
    for step in (1, 4):  # before and after the judges set in
        after_step["do"] = At(step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    assert_same_run(train(cut), whole)
    head = {"vocos": WaveformHead, "hift": Hift}[kind].load(whole / "model")
    assert head(torch.randn(1, 80, 9) - 5).shape == (1, 9 * 256)


def test_what_only_lightning_could_do_for_one_network_is_refused(
    chain: Chain, tmp_path: Path
) -> None:
    for setting in ("trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1.0"):
        with pytest.raises(UsageError, match="this trainer cannot run this stage: Automatic"):
            train(words("vocos", chain, tmp_path, setting, "run.overwrite=true"))


def test_a_source_of_pitch_needs_pitch(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a HiFT head learns the pitch"):
        train(words("hift", chain, tmp_path, "data.pitch=false"))


def test_unknown_terms_are_refused() -> None:
    with pytest.raises(UsageError, match="there is no term mels: weights are of mel, spectral"):
        Adversarial(
            network=HEAD, judges=JUDGES, optimizer=OptimizerSettings(lr=1.0), weights={"mels": 1.0}
        )
