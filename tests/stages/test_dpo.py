"""Masked DPO through the whole stage."""

import math
from pathlib import Path

import pytest
import torch

from aqaa.backbone.loading import Backbone
from aqaa.data.preferences import PreferenceBatches
from aqaa.stages.dpo import Dpo
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.storage import load_tensors
from tests.conftest import Chain


def stage(chain: Chain, tmp_path: Path, model: str = "sft_1") -> Dpo:
    return Dpo(
        model=f"{chain / model}/model",
        optimizer=OptimizerSettings(lr=1.0),
        beta=0.5,
        scores=str(tmp_path / "scores.safetensors"),
    )


def source(chain: Chain, mask: str = "audio") -> PreferenceBatches:
    return PreferenceBatches(pairs=str(chain / "pairs"), batch=2, mask=mask)


@pytest.mark.parametrize("mask", ["audio", "none"])
def test_masked_positions_give_a_gradient_of_exactly_zero(
    mask: str, chain: Chain, tmp_path: Path, attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    dpo = attach(stage(chain, tmp_path), source(chain, mask))
    seen: list[torch.Tensor] = []
    real = Backbone.hidden

    def hidden(self: Backbone, input_ids: torch.Tensor, **cache: object) -> object:
        out = real(self, input_ids, **cache)
        out.last_hidden_state.retain_grad()
        seen.append(out.last_hidden_state)
        return out

    monkeypatch.setattr(Backbone, "hidden", hidden)
    batch = dpo.trainer.datamodule.source.batch(0)
    dpo._loss(batch).loss.backward()
    (state,) = seen
    assert state.grad is not None
    v = dpo.backbone.ids.vocabulary
    audio = batch.targets >= v.linguistic_start  # the markers follow the codes
    answer = batch.slots > 0
    moved = (state.grad != 0).any(-1)
    assert moved[answer & ~audio].all()  # every text id and <|EOT|>
    assert not moved[~answer].any()
    assert bool(moved[answer & audio].any()) is (mask == "none")
    # Audio stays in the context: its embeddings are moved by what follows.
    assert any((p.grad != 0).any() for p in dpo.decoder.parameters())


def test_the_first_loss_is_that_of_a_coin(chain: Chain, metrics) -> None:
    row = metrics(chain / "dpo")[0]
    assert float(row["train/loss"]) == pytest.approx(math.log(2), abs=1e-4)
    assert abs(float(row["train/margin"])) < 1e-3


def test_reference_scores_are_kept_and_belong_to_their_model(
    chain: Chain, tmp_path: Path, attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = attach(stage(chain, tmp_path), source(chain))._reference
    assert first.shape == (len(source(chain).rows), 2) and (first < 0).all()
    assert not first.requires_grad
    (kept,) = load_tensors(tmp_path / "scores.safetensors").values()
    assert torch.equal(kept, first)

    counted = []
    real = Dpo._scores
    monkeypatch.setattr(Dpo, "_scores", lambda self, batch: counted.append(1) or real(self, batch))
    again = attach(stage(chain, tmp_path), source(chain))._reference
    assert torch.equal(again, first) and not counted
    other = attach(stage(chain, tmp_path, "sft_2"), source(chain))._reference
    assert counted and not torch.equal(other, first)
    counted.clear()
    attach(stage(chain, tmp_path, "sft_2"), source(chain, "none"))
    assert counted


def test_scores_do_not_depend_on_the_batch_they_stand_in(
    chain: Chain, tmp_path: Path, attach
) -> None:
    dpo = attach(stage(chain, tmp_path), source(chain))
    pairs = dpo.trainer.datamodule.source
    for pair in range(len(pairs.rows)):
        with torch.no_grad():
            alone = dpo._scores(pairs.collate([pair]))
        assert torch.allclose(alone, dpo._reference[pair], atol=1e-3)


def test_the_loss_prefers_the_chosen(chain: Chain, tmp_path: Path, attach) -> None:
    dpo = attach(stage(chain, tmp_path), source(chain))
    batch = dpo.trainer.datamodule.source.batch(0)
    optimizer = torch.optim.SGD(dpo.decoder.parameters(), lr=0.02)
    before = dpo._loss(batch)
    before.loss.backward()
    optimizer.step()
    after = dpo._loss(batch)
    assert after.loss < before.loss and (after.margin > before.margin).all()
