"""Packed rows: no document hears another, and the loss is that of each document alone."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from aqaa.backbone.head import LossHead
from aqaa.backbone.loading import Backbone, Ids, load_backbone
from aqaa.data.collate import TokenBatch
from aqaa.data.dialogues import DialogueBatches
from aqaa.losses.next_token import SlotTable
from aqaa.runtime.compose import compose
from aqaa.stages.language import SLOT_WEIGHTS, LanguageModel, slot_tables
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.stream import Slot
from aqaa.vocabulary import TOKEN_TYPES
from tests.conftest import Chain
from tests.llama import write_llama

ROW_TOKENS = 512
MIXTURE = {"aqtaa": 0.5, "asr": 0.2, "tts": 0.3}


@pytest.fixture(scope="module")
def llama(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama") / "model", Ids.load(chain / "init"))


@pytest.fixture(params=["llama", "step1"])
def model(request: pytest.FixtureRequest, chain: Chain, llama: Path) -> Path:
    return llama if request.param == "llama" else chain / "init"


def packed(chain: Chain, rows: int = 1) -> DialogueBatches:
    made = DialogueBatches(
        corpus=str(chain / "corpus"),
        tokens=str(chain / "tokens"),
        tasks={name: {"share": share} for name, share in MIXTURE.items()},
        steps=4,
        code_noise=0.0,
        validation_rows=5,
        row_tokens=ROW_TOKENS,
        rows=rows,
    )
    made.bind(Ids.load(chain / "init"))
    return made


def nats(backbone: Backbone, batch: TokenBatch, tables: dict[int, SlotTable]) -> Tensor:
    """Nats of every position (B, T), zero where nothing is learnt."""
    with torch.no_grad():
        hidden = backbone.hidden(
            batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
        flat = (hidden.flatten(0, 1), batch.targets.flatten(), batch.slots.flatten())
        found = LossHead(table=backbone.table, tables=tables)(*flat)
    return found.nats.view(batch.slots.shape)


def starts(batch: TokenBatch) -> list[int]:
    """Where the documents of the first row begin, and the end."""
    assert batch.position_ids is not None
    return [*(batch.position_ids[0] == 0).nonzero()[:, 0].tolist(), batch.input_ids.shape[1]]


@pytest.mark.parametrize("normalise", ["slot", "table"])
@pytest.mark.parametrize("training", [True, False])
def test_a_changed_document_leaves_every_other_loss_bit_equal(
    chain: Chain, model: Path, training: bool, normalise
) -> None:
    backbone = load_backbone(model)
    backbone.model.train(training)
    tables = slot_tables(backbone, SLOT_WEIGHTS, normalise)
    batch = packed(chain, rows=2).batch(0)
    before = nats(backbone, batch, tables)
    borders = starts(batch)
    assert len(borders) > 3
    changed = slice(borders[1], borders[2])
    ids = batch.input_ids.clone()
    ids[0, changed] = (ids[0, changed] + 3) % backbone.ids.vocabulary.used_rows
    after = nats(backbone, batch._replace(input_ids=ids), tables)
    same = torch.ones_like(before, dtype=torch.bool)
    same[0, changed] = False
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[0, changed], after[0, changed])


@pytest.mark.parametrize("normalise", ["slot", "table"])
def test_the_loss_is_that_of_separate_documents(chain: Chain, model: Path, normalise) -> None:
    backbone = load_backbone(model)
    tables = slot_tables(backbone, SLOT_WEIGHTS, normalise)
    batch = packed(chain).batch(1)
    found = nats(backbone, batch, tables)[0]
    borders = starts(batch)
    for begin, end in zip(borders[:-2], borders[1:-1], strict=True):
        with torch.no_grad():
            logits = backbone.model(input_ids=batch.input_ids[:, begin:end]).logits[0]
        for i in range(end - begin):
            slot = Slot(int(batch.slots[0, begin + i]))
            if slot is Slot.NONE or (slot is Slot.FORCED and normalise == "slot"):
                assert found[begin + i] == 0
                continue
            rows = backbone.slot_rows(slot) if normalise == "slot" else torch.arange(len(logits[i]))
            label = int((rows == batch.targets[0, begin + i]).nonzero())
            alone = -logits[i][rows].log_softmax(0)[label]
            assert float(found[begin + i]) == pytest.approx(float(alone), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("normalise", ["slot", "table"])
def test_a_batch_weighs_what_its_loss_is_divided_by(
    chain: Chain, llama: Path, attach, normalise
) -> None:
    settings = OptimizerSettings(lr=1.0)
    stage = LanguageModel(model=str(llama), optimizer=settings, normalise=normalise)
    attach(stage, source := packed(chain))
    weights = []
    for batch in (source.batch(0), source.batch(3)):
        flat = (torch.randn(batch.slots.numel(), 32), batch.targets.flatten())
        found = stage.head(*flat, batch.slots.flatten())
        weights.append(stage.weight_of(batch))
        assert weights[-1] == pytest.approx(float(found.weight.double().sum()), rel=1e-6)
        assert float(found.loss) == pytest.approx(
            float((found.weight * found.nats).double().sum()) / weights[-1], rel=1e-5
        )
    assert weights[0] != weights[1]


def test_figures_are_sums_over_positions(chain: Chain, llama: Path, attach, monkeypatch) -> None:
    stage = LanguageModel(model=str(llama), optimizer=OptimizerSettings(lr=1.0))
    attach(stage, source := packed(chain))
    batches = [source.batch(step) for step in (0, 1)]
    logged: dict[str, float] = {}
    monkeypatch.setattr(stage, "log_dict", logged.update)
    stage.eval()
    with torch.no_grad():
        for batch in batches:
            stage.validation_step(batch, 0)
    stage.on_validation_epoch_end()
    tables = slot_tables(stage.backbone, SLOT_WEIGHTS)
    found = torch.cat([nats(stage.backbone, batch, tables) for batch in batches])
    slots, targets, sources = (
        torch.cat([getattr(batch, name) for batch in batches])
        for name in ("slots", "targets", "sources")
    )
    learnt = (slots != Slot.NONE) & (slots != Slot.FORCED)
    weight = torch.zeros(slots.shape)
    for slot in Slot:
        weight[slots == slot] = SLOT_WEIGHTS.get(slot.name.lower(), 0.0)
    wanted = {"validation/loss": (weight * found).sum() / weight.sum()}
    vocabulary = stage.backbone.ids.vocabulary
    for kind in TOKEN_TYPES:
        here = learnt & torch.tensor(
            [[vocabulary.token_type(int(t)) == kind for t in row] for row in targets]
        )
        wanted[f"validation/{kind}_loss"] = found[here].mean()
    positions = torch.cat([batch.position_ids for batch in batches])
    for number, task in enumerate(MIXTURE):
        here = learnt & (sources == number)
        wanted[f"validation/{task}"] = (weight * found)[here].sum() / weight[here].sum()
        # What is read counts, learnt or not; the tail of a row is no document.
        drawn = [which for step in (0, 1) for row in source.drawn(step) for which in row]
        documents = [source._document(*which) for which in drawn if which[0] == task]
        wanted[f"validation/{task}_tokens"] = sum(len(d.ids) - 1 for d in documents)
        assert wanted[f"validation/{task}_tokens"] == int((sources == number).sum()) > here.sum()
    assert (sources == -1).any() and (positions[sources == -1] < ROW_TOKENS).all()
    for name, value in wanted.items():
        assert logged.pop(name) == pytest.approx(float(value), rel=1e-5), name
    left = {f"validation/{k}_{f}" for k in TOKEN_TYPES for f in ("entropy", "accuracy")}
    assert set(logged) == left


def test_packed_training_runs_and_logs_every_task(chain: Chain, llama: Path, tmp_path) -> None:
    from aqaa.runtime.run import train

    words = chain.words("sft_1", tmp_path, "data.row_tokens=4096", "data.rows=2", model=llama)
    words += ["stage.normalise=table", "run.steps=2"]
    run = train("sft", compose("sft", words[1:]))
    head = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    tasks = {"aqtaa", "aqta", "interleaved", "tts", "asr"}
    assert {f"train/{t}" for t in tasks} | {f"validation/{t}" for t in tasks} <= set(head)


def test_an_unknown_normaliser_is_refused(chain: Chain) -> None:
    from aqaa.errors import UsageError

    ids = Ids.load(chain / "init")
    with pytest.raises(UsageError, match="normalise=rows is neither slot nor table"):
        slot_tables(SimpleNamespace(ids=ids), SLOT_WEIGHTS, "rows")  # type: ignore[arg-type]
