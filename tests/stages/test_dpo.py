"""Masked DPO through the whole stage."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aqaa.backbone.lora import Lora
from aqaa.data import scores as kept_scores
from aqaa.data.preferences import PreferenceBatches
from aqaa.data.scores import read_scores
from aqaa.errors import UsageError
from aqaa.losses.masked_dpo import MASKS
from aqaa.stages.dpo import Dpo
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.vocabulary import TOKEN_TYPES
from tests.conftest import Chain
from tests.llama import write_llama

BETA = 0.5


def stage(chain: Chain, tmp_path: Path, model: str | Path = "sft_1/model", **more: Any) -> Dpo:
    settings = {"scores": str(tmp_path / "scores.safetensors"), "beta": BETA, **more}
    return Dpo(model=str(chain.folder / model), optimizer=OptimizerSettings(lr=1.0), **settings)


def source(chain: Chain, mask: str = "audio", *, shared: bool = True) -> PreferenceBatches:
    return PreferenceBatches(
        pairs=str(chain / "pairs"), batch=2, mask=mask, shared_prompt=shared
    )  # fmt: skip


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every batch that is scored."""
    seen: list[int] = []
    real = Dpo._scores

    def scores(self: Dpo, batch: Any, **options: Any) -> Tensor:
        seen.append(len(batch.pairs))
        return real(self, batch, **options)

    monkeypatch.setattr(Dpo, "_scores", scores)
    return seen


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shared", [True, False])
def test_masked_positions_give_a_gradient_of_exactly_zero(
    mask: str, shared: bool, chain: Chain, tmp_path: Path, attach,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    dpo = attach(stage(chain, tmp_path, normalise="table"), source(chain, mask, shared=shared))
    batch = dpo.trainer.datamodule.source.batch(0)
    given: list[Tensor] = []
    real = dpo.head.forward

    def head(hidden: Tensor, targets: Tensor, slots: Tensor) -> Tensor:
        out = real(hidden, targets, slots)
        if hidden.requires_grad:
            hidden.retain_grad()
            out.retain_grad()
        given.extend([hidden, out])
        return out

    monkeypatch.setattr(dpo.head, "forward", head)
    # Masked positions go through the head too, as in a step that is logged.
    dpo._loss(batch, whole=True).loss.backward()
    hidden = given[0]
    assert hidden.grad is not None and len(hidden) == batch.counted
    masked = [TOKEN_TYPES[k] in MASKS[mask] for k in batch.kinds.tolist()]
    assert masked == [i >= batch.counted for i in range(len(masked))]
    moved = (hidden.grad != 0).any(-1)
    assert moved.all()  # every id that counts, through the real head
    assert all((given[1].grad != 0).tolist())
    if mask == "none":
        assert len(given) == 2
    else:
        assert len(given[3]) == len(masked) - batch.counted > 0
        assert not given[2].requires_grad and not given[3].requires_grad
    # Audio stays in the context: its embeddings are moved by what follows.
    assert any((p.grad != 0).any() for p in dpo.decoder.parameters())


@pytest.mark.parametrize("mask", ["audio", "none", "linguistic"])
@pytest.mark.parametrize("shared", [True, False])
def test_loss_and_gradients_equal_a_loop_in_double(
    mask: str, shared: bool, chain: Chain, tmp_path: Path, attach
) -> None:
    """Every answer alone, unpadded, with whole logits, summed id by id."""
    dpo = attach(stage(chain, tmp_path, normalise="table"), source(chain, mask, shared=shared))
    pairs = dpo.trainer.datamodule.source
    dpo.double()
    chosen = [3, 1]
    batch = pairs.collate(chosen)
    reference = dpo._reference[chosen].double()
    with torch.no_grad():  # another policy than the reference
        for parameter in dpo.decoder.parameters():
            parameter.mul_(1.05)
    found = dpo._loss(batch)
    found.loss.backward()
    gradients = {n: p.grad.clone() for n, p in dpo.decoder.named_parameters()}

    dpo.zero_grad()
    ids = dpo.backbone.ids
    margins = []
    for number, pair in enumerate(chosen):
        score = []
        for side, name in enumerate(("chosen", "rejected")):
            stream = pairs._stream(pairs.rows[pair], name)
            logits = dpo.decoder(torch.tensor([stream.ids[:-1]])).logits[0]
            total = logits.new_zeros(())
            for place, (target, slot) in enumerate(
                zip(stream.ids[1:], stream.slots[1:], strict=True)
            ):
                kind = "text" if target == ids.vocabulary.eot else ids.vocabulary.token_type(target)
                if slot and kind not in MASKS[mask]:
                    total = total + logits[place].log_softmax(-1)[target]
            for k, kind in enumerate(TOKEN_TYPES):
                if kind not in MASKS[mask]:
                    total = total - reference[number, side, k]
            score.append(total)
        margins.append(BETA * (score[0] - score[1]))
    loss = sum(torch.log1p(torch.exp(-m)) for m in margins) / len(margins)
    loss.backward()  # type: ignore[union-attr]
    assert found.margin.tolist() == pytest.approx([float(m) for m in margins], abs=1e-6)
    assert float(found.loss) == pytest.approx(float(loss), abs=1e-6)
    assert abs(float(loss) - math.log(2)) > 1e-3
    for name, parameter in dpo.decoder.named_parameters():
        # The norms of the model work in float, whatever the weights are.
        close = 1e-6 * float(parameter.grad.abs().max())
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=close)


@pytest.mark.parametrize("family", ["step1", "llama"])
def test_one_row_a_pair_is_two(
    family: str, chain: Chain, tmp_path: Path, attach: Callable[..., Dpo]
) -> None:
    model: str | Path = "sft_1/model"
    if family == "llama":
        from aqaa.backbone.loading import Ids

        model = write_llama(tmp_path / "llama", Ids.load(chain / "init"))
    shared, two = (
        attach(
            stage(chain, tmp_path, model, scores=str(tmp_path / f"{one}.safetensors")),
            source(chain, "none", shared=one),
        )
        for one in (True, False)
    )
    assert shared._source.shared_prompt and not two._source.shared_prompt
    torch.testing.assert_close(shared._reference, two._reference, rtol=1e-5, atol=1e-5)
    for dpo in (shared, two):
        dpo.eval()
        dpo._loss(dpo._source.batch(1)).loss.backward()
    for mine, other in zip(shared.decoder.parameters(), two.decoder.parameters(), strict=True):
        close = 1e-4 * float(other.grad.abs().max())
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=close)


def test_a_backbone_without_such_rows_takes_two_and_says_so(
    chain: Chain, tmp_path: Path, attach, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("aqaa.stages.dpo.can_fork", lambda backbone: False)
    dpo = attach(stage(chain, tmp_path), source(chain))
    said = "dpo: step1 cannot hold two answers in one row: each pair is two"
    assert said in capsys.readouterr().out
    assert dpo._source.batch(0).forks is None


def test_the_first_loss_is_that_of_a_coin(chain: Chain, metrics) -> None:
    row = metrics(chain / "dpo")[0]
    assert float(row["train/loss"]) == pytest.approx(math.log(2), abs=1e-4)
    assert abs(float(row["train/margin"])) < 1e-3
    for kind in TOKEN_TYPES[:3]:
        assert abs(float(row[f"train/{kind}_margin"])) < 1e-3
        assert 0 <= float(row[f"train/{kind}_ties"]) <= 1
        assert f"train/{kind}_longer_tokens" in row
    assert 0 <= float(row["train/ties"]) <= 1 and 0 <= float(row["train/length_bias"]) <= 1


def test_margins_by_kind_add_up_to_those_of_all_that_counts(
    chain: Chain, tmp_path: Path, attach
) -> None:
    dpo = attach(stage(chain, tmp_path), source(chain, "semantic"))
    with torch.no_grad():
        for parameter in dpo.decoder.parameters():
            parameter.mul_(1.05)
    found = dpo._loss(dpo._source.batch(0), whole=True)
    keep = torch.tensor(dpo._source.keep)
    assert (found.margins.abs() > 1e-4).any(0)[:3].all()  # also of what is masked
    torch.testing.assert_close(found.margins[:, keep].sum(1), found.margin, rtol=1e-4, atol=1e-3)


def test_reference_scores_serve_every_mask_and_later_runs(
    chain: Chain, tmp_path: Path, attach, counted: list[int]
) -> None:
    first = attach(stage(chain, tmp_path), source(chain))._reference
    pairs = len(source(chain).rows)
    assert first.shape == (pairs, 2, len(TOKEN_TYPES)) and sum(counted) == pairs
    assert (first[:, :, 0] < 0).all() and not first.requires_grad
    counted.clear()
    for mask in MASKS:
        again = attach(stage(chain, tmp_path), source(chain, mask))._reference
        assert torch.equal(again, first) and not counted


def test_stale_reference_scores_are_refused(
    chain: Chain, tmp_path: Path, attach, counted: list[int]
) -> None:
    attach(stage(chain, tmp_path), source(chain))
    for name, other in {
        "model": stage(chain, tmp_path, "sft_2/model"),
        "normalise": stage(chain, tmp_path, normalise="table"),
    }.items():
        with pytest.raises(UsageError, match=f"are stale: they were made with {name} ") as caught:
            attach(other, source(chain))
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="are stale: they were made with rows one a pair"):
        attach(stage(chain, tmp_path), source(chain, shared=False))


def test_without_a_file_named_they_lie_beside_the_pairs(chain: Chain, counted: list[int]) -> None:
    kept = sorted(chain.folder.glob("pairs.scores/*.safetensors"))  # of the run of the chain
    assert len(kept) == 1 and not list((chain / "dpo").glob("*scores*"))


def test_scoring_goes_on_from_where_it_was_cut(
    chain: Chain, tmp_path: Path, attach, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_scores, "BATCH_PAIRS", 1)
    monkeypatch.setattr(kept_scores, "_FEWEST_TURNS", 1)
    monkeypatch.setattr(kept_scores, "_SAVES", 1000)
    whole = attach(stage(chain, tmp_path), source(chain))._reference.clone()
    path, real = tmp_path / "cut.safetensors", kept_scores.keep_scores

    def killed(*args: Any) -> None:
        real(*args)
        if len(counted) == 2:
            raise KeyboardInterrupt

    counted.clear()
    monkeypatch.setattr(kept_scores, "keep_scores", killed)
    with pytest.raises(KeyboardInterrupt):
        attach(stage(chain, tmp_path, scores=str(path)), source(chain))
    assert len(counted) == 2
    again = attach(stage(chain, tmp_path, scores=str(path)), source(chain))._reference
    assert len(counted) == len(whole) and torch.equal(again, whole)
    dpo = stage(chain, tmp_path, scores=str(path))
    attach(dpo, source(chain))
    kept = read_scores(path, dpo._made_of(dpo._source))
    assert kept is not None and not kept.left and torch.equal(kept.scores, whole)


def test_scores_do_not_depend_on_the_batch_they_stand_in(
    chain: Chain, tmp_path: Path, attach
) -> None:
    dpo = attach(stage(chain, tmp_path), source(chain))
    pairs = dpo.trainer.datamodule.source
    for pair in range(len(pairs.rows)):
        with torch.no_grad():
            alone = dpo._scores(pairs.collate([pair]), whole=True)
        assert torch.allclose(alone, dpo._reference[pair], atol=1e-3)


def test_the_reference_of_an_adapter_is_the_model_without_it(
    chain: Chain, tmp_path: Path, attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = Lora(rank=2, alpha=4, dropout=0.0, targets="all-linear", seed=3)
    plain = attach(stage(chain, tmp_path), source(chain))._reference
    scores = str(tmp_path / "adapter.safetensors")
    adapted = attach(stage(chain, tmp_path, adapter=lora, scores=scores), source(chain))
    assert torch.equal(adapted._reference, plain)
    with torch.no_grad():  # as if it had learnt
        for name, parameter in adapted.decoder.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    changed = adapted._scores(adapted._source.collate([0]), whole=True)
    assert not torch.allclose(changed, plain[0], atol=1e-2)
    Path(scores).unlink()
    adapted._reference = None  # and these are made where an engine holds the weights
    adapted.on_fit_start()
    torch.testing.assert_close(adapted._reference, plain, rtol=1e-6, atol=1e-5)
    assert any(p.requires_grad for p in adapted.decoder.parameters())
    on_again = adapted._scores(adapted._source.collate([0]), whole=True)
    torch.testing.assert_close(on_again, changed)


def test_the_loss_prefers_the_chosen(chain: Chain, tmp_path: Path, attach) -> None:
    dpo = attach(stage(chain, tmp_path), source(chain))
    batch = dpo.trainer.datamodule.source.batch(0)
    optimizer = torch.optim.SGD(dpo.decoder.parameters(), lr=0.02)
    before = dpo._loss(batch)
    before.loss.backward()
    optimizer.step()
    after = dpo._loss(batch)
    assert after.loss < before.loss and (after.margin > before.margin).all()
