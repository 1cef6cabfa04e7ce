"""Next-token training of the backbone: what the first logged loss must be, and slots left out."""

import pytest
import torch

from aqaa.backbone.loading import Ids, load_backbone
from aqaa.data.dialogues import DialogueBatches
from aqaa.errors import UsageError
from aqaa.losses.next_token import next_token
from aqaa.runtime.compose import compose
from aqaa.stages.language import SLOT_WEIGHTS, slot_tables
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.stages.pretrain import Pretrain
from aqaa.storage import load_tensors
from aqaa.stream import Slot
from aqaa.vocabulary import TOKEN_TYPES
from tests.conftest import Chain


def source_of(chain: Chain) -> DialogueBatches:
    """The very source that the tiny run had."""
    from hydra.utils import instantiate

    verb, *words = chain.words("pretrain", chain.folder)
    made = instantiate(compose(verb, words).data, _convert_="all")
    made.bind(Ids.load(chain / "init"))
    return made


def test_the_first_loss_is_that_of_the_start_model(chain: Chain, metrics) -> None:
    batch = source_of(chain).batch(0)
    backbone = load_backbone(chain / "init")
    with torch.no_grad():
        hidden = backbone.model.base_model(input_ids=batch.input_ids).last_hidden_state
    # The long way round: whole logits, every position, slot by slot.
    total = weight = 0.0
    for slot, name in ((s, s.name.lower()) for s in Slot):
        here = batch.slots == slot
        if name not in SLOT_WEIGHTS or not here.any():
            continue
        rows = backbone.slot_rows(slot)
        logits = (hidden[here] @ backbone.table.T)[:, rows]
        labels = torch.tensor([rows.tolist().index(t) for t in batch.targets[here].tolist()])
        nll = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        total += SLOT_WEIGHTS[name] * float(nll.detach())
        weight += SLOT_WEIGHTS[name] * int(here.sum())
    row = metrics(chain / "pretrain")[0]
    assert float(row["train/loss"]) == pytest.approx(total / weight, rel=1e-5)
    assert float(row[f"train/{batch.task}"]) == float(row["train/loss"])


def test_figures_are_logged_by_task_and_by_kind_of_id(chain: Chain, metrics) -> None:
    rows = metrics(chain / "pretrain")
    names = set(rows[0])
    for name in TOKEN_TYPES:
        for figure in ("loss", "entropy", "accuracy"):
            assert f"validation/{name}_{figure}" in names
    assert {"train/text_loss", "train/text_entropy", "train/text_accuracy"} <= names
    for task in ("asr", "aqta", "tqta", "tts", "interleaved", "continuation"):
        assert f"validation/{task}" in names


def test_a_second_configuration_changes_nothing(chain: Chain, attach) -> None:
    stage = Pretrain(model=str(chain / "init"), optimizer=OptimizerSettings(lr=1.0))
    attach(stage, source_of(chain))
    first = stage.decoder
    stage.configure_model()
    assert stage.decoder is first and first.training


def test_a_slot_without_a_weight_carries_no_loss(chain: Chain) -> None:
    batch = source_of(chain).batch(0)
    backbone = load_backbone(chain / "init")
    hidden = torch.randn(*batch.targets.shape, 32, requires_grad=True)
    tables = slot_tables(backbone, {"text": 1.0})
    flat = (hidden.flatten(0, 1), backbone.table, batch.targets.flatten(), batch.slots.flatten())
    next_token(*flat, tables).loss.backward()
    assert hidden.grad is not None
    moved = hidden.grad.abs().sum(-1) > 0
    assert torch.equal(moved, batch.slots == Slot.TEXT)


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"text": 1.0},
        {**SLOT_WEIGHTS, "forced": 1.0},
        {"txet": 3.0, "linguistic": 1.0, "semantic": 1.0, "after": 1.0},
    ],
)
def test_weights_name_every_slot_and_no_other(weights: dict[str, float]) -> None:
    settings = OptimizerSettings(lr=1.0)
    with pytest.raises(UsageError, match="must name text, linguistic, semantic, after") as caught:
        Pretrain(model="unread", optimizer=settings, slot_weights=weights)
    assert "\n" not in str(caught.value)
    Pretrain(model="unread", optimizer=settings, slot_weights={**SLOT_WEIGHTS, "after": 0.0})


def test_training_moves_every_matrix(chain: Chain) -> None:
    before = load_tensors(chain / "init" / "model.safetensors")
    after = load_tensors(chain / "pretrain" / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    assert [name for name in before if before[name].equal(after[name])] == []
    assert (chain / "init/aqaa.json").read_bytes() == (
        (chain / "pretrain/model/aqaa.json").read_bytes()
    )
