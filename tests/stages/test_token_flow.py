"""Training of the full-size flow: its export, its resume, where it starts from."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aqaa.data.token_store import TokenStore
from aqaa.data.token_voice import TokenFlowBatches
from aqaa.errors import UsageError
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.stages.token_flow import TokenFlowTraining
from aqaa.storage import load_tensors, read_json
from aqaa.vocoder.hift import Hift
from aqaa.vocoder.token_flow import TokenFlow
from aqaa.vocoder.token_vocoder import TokenVocoder
from tests.conftest import Chain
from tests.runs import At, assert_same_run, interrupt, train
from tests.stages.two_voices import FLOW, Tokens


def words(chain: Chain, root: Path, *more: str) -> list[str]:
    """The command line of a tiny training."""
    return [
        *("vocoder", "preset=speech/vocoder_flow", "vocoder=token_flow_tiny", f"run.root={root}"),
        *(f"parents.corpus={chain / 'corpus'}", f"parents.tokens={chain / 'tokens'}"),
        *("run.steps=6", "run.threads=1", "run.save_every_s=1000", "data.batch=3"),
        *("trainer.log_every_n_steps=1", "trainer.val_check_interval=3", "optim.warmup_steps=2"),
        *("vocoder.encoder.dropout=0.1", *more),
    ]


def stage(attach: Any, **options: Any) -> TokenFlowTraining:
    made = TokenFlowTraining(network=FLOW, optimizer=OptimizerSettings(lr=1e-2), **options)
    return attach(made, Tokens())


def test_a_resumed_run_is_the_unbroken_one(
    chain: Chain, tmp_path: Path, after_step: dict[str, Any]
) -> None:
    whole = train(words(chain, tmp_path / "whole"))
    cut = words(chain, tmp_path / "cut")
    for step in (1, 4):
        after_step["do"] = At(step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    assert_same_run(train(cut), whole)
    tensors = load_tensors(whole / "model/model.safetensors")
    untaught = sum(t.numel() for k, t in tensors.items() if k.startswith("spk_embed_affine_layer"))
    trained = read_json(whole / "lineage.json")["parameters"]
    assert trained == sum(t.numel() for t in tensors.values()) - untaught


def test_a_longer_training_lowers_the_loss_and_speaks(
    chain: Chain, tmp_path: Path, metrics: Any
) -> None:
    more = ("run.steps=40", "trainer.val_check_interval=20", "stage.average_decay=0.5",
            "stage.steps=4", "stage.guidance=0.4", "stage.solver=midpoint")  # fmt: skip
    run = train(words(chain, tmp_path, *more, "optim.lr=1e-2"))
    checked = [float(r["validation/loss"]) for r in metrics(run) if r["validation/loss"]]
    assert len(checked) == 2 and checked[1] < 0.9 * checked[0]
    told = float([r["validation/mel"] for r in metrics(run) if r["validation/mel"]][-1])
    assert told == pytest.approx(_off(chain, TokenFlow.load(run / "model")), rel=1e-4)
    store = TokenStore(chain / "tokens")
    pair = store[next(key for key in store.keys() if key.startswith("answers/"))]
    flow = TokenFlow.load(run / "model")
    head = Hift(channels=16, kernels=[3], source_kernels=[3, 3], pitch_channels=4)
    sound = TokenVocoder(flow, head, steps=2).speak(pair)
    assert len(sound.samples) == 256 * flow.frames(5 * pair.groups)
    assert np.isfinite(sound.samples).all()


def _off(chain: Chain, flow: TokenFlow) -> float:
    """How far the first validation clips' mels are off, by hand."""
    folders = {"corpus": str(chain / "corpus"), "tokens": str(chain / "tokens")}
    batch, off = TokenFlowBatches(**folders, batch=3, longest_groups=25).validation()[0], 0.0
    for row, frames in enumerate(batch.frame_counts):
        ids = batch.tokens[row : row + 1, : batch.token_counts[row]]
        noise = batch.draw.noise[row : row + 1, :, :frames]
        mel = flow.sample(ids, noise=noise, steps=4, guidance=0.4, solver="midpoint")
        off += float((mel[0] - batch.mel[row, :, :frames]).abs().mean())
    return off / len(batch.frame_counts)


def test_the_average_is_exported_and_not_trained(attach: Any, tmp_path: Path) -> None:
    trained = stage(attach, average_decay=0.5)
    slow = None
    for step in range(3):
        with torch.no_grad():
            for p in trained.flow.parameters():
                p.add_(1.0)
        trained.trainer.global_step = step + 1
        trained.on_train_batch_end(None, None, step)
        new = {k: v.clone() for k, v in trained.flow.state_dict().items()}
        slow = new if slow is None else {k: (slow[k] + new[k]) / 2 for k in new}
    trained.export(tmp_path)
    for name, value in TokenFlow.load(tmp_path).state_dict().items():
        torch.testing.assert_close(value, slow[name], rtol=0, atol=1e-5)
    assert not any(p.requires_grad for p in trained.average.parameters())


def test_it_starts_from_the_weights_of_a_folder(attach: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = FLOW()
    before.save(tmp_path)
    begun = stage(attach, start_from=str(tmp_path))
    for part in (begun.flow, begun.average.module):
        state = part.state_dict()
        assert all(torch.equal(state[k], v) for k, v in before.state_dict().items())
    assert begun.flow.training


def test_another_size_or_another_thing_is_no_start(attach: Any, tmp_path: Path) -> None:
    FLOW(tokens=25).save(tmp_path / "flow")
    with pytest.raises(UsageError, match=r"input_embedding.weight is \(25, 6\) there, \(24, 6\)"):
        stage(attach, start_from=str(tmp_path / "flow"))
    other = partial(FLOW, estimator={**FLOW.keywords["estimator"], "heads": 1, "head_width": 8})
    other().save(tmp_path / "heads")
    with pytest.raises(UsageError, match="heads of the U-Net is 1 there, 2 here"):
        stage(attach, start_from=str(tmp_path / "heads"))
    with pytest.raises(UsageError, match="holds neither config.json nor cosyvoice.yaml"):
        stage(attach, start_from=str(tmp_path))


def test_a_start_that_the_stage_does_not_take_is_refused(chain: Chain, tmp_path: Path) -> None:
    more = chain.words("vocoder_flow", tmp_path, start_from=chain / "vocoder_flow/model")
    with pytest.raises(UsageError, match="begins from chance"):
        train(more)
    with pytest.raises(UsageError, match="set parents.start_from and leave stage.start_from"):
        train(words(chain, tmp_path, f"stage.start_from={chain / 'vocoder_flow/model'}"))
