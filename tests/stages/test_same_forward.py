"""The forward pass of every stage is that of answering: the logits that the loss sees, position by
position, are those that the decoder picks from, id by id under its cache.

What training sees is caught at the door of its own head; what decoding sees, where it picks.
Letters: B rows, T ids, N supervised positions, S rows of a slot.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aqaa.backbone.decoding import Decoder, Sampling
from aqaa.backbone.loading import Backbone, Ids
from aqaa.data.dialogues import DialogueBatches
from aqaa.data.preferences import PreferenceBatches
from aqaa.data.targets import targets
from aqaa.grammar import AnswerGrammar, Mode, Slot
from aqaa.stages.dpo import Dpo
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.stages.pretrain import Pretrain
from aqaa.stages.sft import Sft
from tests.conftest import Chain
from tests.llama import write_llama, write_qwen

TOLERANCE = 1e-5
OPTIMIZER = OptimizerSettings(lr=1.0)
PRETRAIN = ("asr", "aqta", "tqta", "tts", "interleaved", "continuation")
TASKS = {"pretrain": PRETRAIN, "sft": ("aqtaa", "aqta", "aqaa")}
PACKED = {"row_tokens": 700, "rows": 1}


@pytest.fixture(scope="module")
def models(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A backbone of each family, with the same ids."""
    folder = tmp_path_factory.mktemp("families")
    ids = Ids.load(chain / "init")
    return {
        "step1": chain / "sft_1" / "model",
        "llama": write_llama(folder / "llama", ids),
        "qwen": write_qwen(folder / "qwen", ids),
    }


class Watched(nn.Module):
    """A head that remembers the states it was given."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.states: list[Tensor] = []

    def forward(self, hidden: Tensor, targets: Tensor, slots: Tensor) -> Any:
        self.states.append(hidden.detach())
        return self.head(hidden, targets, slots)


class Led(Decoder):
    """A decoder that writes the ids it is told and remembers what it would have picked from."""

    def __init__(self, backbone: Backbone, told: list[int]) -> None:
        super().__init__(backbone)
        self.told = iter(told)
        self.logits: list[tuple[Slot, Tensor]] = []

    def _pick(self, hidden: Tensor, grammar: AnswerGrammar, *_: Any) -> int:
        self.logits.append((grammar.slot, self._table[grammar.slot] @ hidden))
        return next(self.told)


@dataclass
class Answer:
    """An answer of a batch: what is read before it, its ids, their slots, their place (row, T)."""

    prompt: list[int]
    ids: list[int]
    slots: list[int]
    row: int
    begin: int


@dataclass
class Compared:
    """Of an answer: the largest difference of a logit, and its score as the decoder sees it."""

    worst: float
    score: float


def answers(batch: Any, pad: int) -> Iterator[Answer]:
    """The one learnt answer of every document."""
    positions = getattr(batch, "position_ids", None)
    for row, inputs in enumerate(batch.input_ids.tolist()):
        begins = [0] if positions is None else (positions[row] == 0).nonzero().flatten().tolist()
        for begin, end in zip(begins, [*begins[1:], len(inputs)], strict=True):
            learnt = (batch.slots[row, begin:end] > 0).nonzero().flatten()
            if not len(learnt):
                assert all(token == pad for token in inputs[begin:end])
                continue
            first, last = begin + int(learnt[0]), begin + int(learnt[-1]) + 1
            assert last - first == len(learnt), "an answer is learnt as a whole"
            fields = (batch.targets, batch.slots)
            ids, slots = (tensor[row, first:last].tolist() for tensor in fields)
            yield Answer(inputs[begin : first + 1], ids, slots, row, first)


def led(backbone: Backbone, answer: Answer) -> list[tuple[Slot, Tensor]]:
    """What the decoder picks from, step by step, as it writes an answer."""
    v = backbone.ids.vocabulary
    mode: Mode = "text" if v.audio_start not in answer.ids else "both"
    mode = "speech" if answer.ids[0] == v.audio_start else mode
    told = [t for t, s in zip(answer.ids, answer.slots, strict=True) if s != Slot.FORCED]
    decoder = Led(backbone, told)
    written = decoder.answer(
        answer.prompt, mode=mode, sampling=Sampling(max_tokens=len(answer.ids))
    )
    assert written == answer.ids
    return decoder.logits


def compared(stage: Any, batch: Any, run: Callable[[Any], Any], at: Tensor) -> Iterator[Compared]:
    """The logits of the loss beside those of the decoder, answer by answer.

    ``at`` (B, T) says which positions the stage's head gets.
    """
    stage.head = watched = Watched(stage.head)
    run(batch)
    stage.head = watched.head
    (states,) = watched.states
    place = {tuple(p): n for n, p in enumerate(at.nonzero().tolist())}
    assert len(states) == len(place)
    table = stage.backbone.table.detach()
    rows = {slot: stage.backbone.slot_rows(slot) for slot in Slot}
    for answer in answers(batch, stage.backbone.ids.vocabulary.pad):
        seen = iter(led(stage.backbone, answer))
        worst, score = 0.0, 0.0
        for offset, (token, slot) in enumerate(zip(answer.ids, answer.slots, strict=True)):
            where = (answer.row, answer.begin + offset)
            if slot == Slot.FORCED:
                continue
            picked_in, logits = next(seen)
            assert picked_in == slot
            if where in place:
                mine = table[rows[picked_in]] @ states[place[where]]
                scale = max(1.0, float(logits.abs().max()))  # 32 bits have so many digits
                worst = max(worst, float((mine - logits).abs().max()) / scale)
                chosen = int((rows[picked_in] == token).nonzero())
                score += float(logits.double().log_softmax(-1)[chosen])
        yield Compared(worst, score)


def language(
    chain: Chain, models: dict[str, Path], attach: Any, name: str, family: str, **how: int
) -> tuple[Any, list[Any]]:
    """A stage and a batch of every task, or a few packed rows."""
    kind = {"pretrain": Pretrain, "sft": Sft}[name]
    tasks = {task: {"share": 1.0, "batch": 2} for task in TASKS[name]}
    data = DialogueBatches(
        corpus=str(chain / "corpus"), tokens=str(chain / "tokens"), tasks=tasks, steps=40, **how
    )  # fmt: skip
    stage = attach(kind(model=str(models[family]), optimizer=OPTIMIZER), data)
    batches: dict[str, Any] = {}
    for step in range(40):
        batch = data.batch(step)
        batches.setdefault(f"row {step}" if how else batch.task, batch)
        if len(batches) == (2 if how else len(tasks)):
            return stage, list(batches.values())
    raise AssertionError("a task never came")


def learnt(stage: Any, batch: Any) -> Tensor:
    return torch.stack([batch.slots == slot for slot in stage._tables]).any(0)


@pytest.mark.parametrize("family", ["step1", "llama", "qwen"])
@pytest.mark.parametrize("how", ["padded", "packed"])
@pytest.mark.parametrize("name", ["pretrain", "sft"])
def test_the_loss_sees_what_the_decoder_sees(
    name: str, how: str, family: str, chain: Chain, models: dict[str, Path], attach: Any
) -> None:
    more = PACKED if how == "packed" else {}
    stage, batches = language(chain, models, attach, name, family, **more)
    found = []
    for batch in batches:
        stage.decoder.train()
        found += compared(stage, batch, lambda b: stage._loss(b, count=False), learnt(stage, batch))
    assert len(found) >= 2 * (len(batches) if how == "padded" else 2)
    assert max(answer.worst for answer in found) < TOLERANCE


@pytest.mark.parametrize(
    ("mask", "family"), [("audio", "step1"), ("none", "step1"), ("none", "llama"), ("none", "qwen")]
)
def test_pairs_are_scored_as_the_decoder_sees_them(
    mask: str, family: str, chain: Chain, models: dict[str, Path], attach: Any, tmp_path: Path
) -> None:
    data = PreferenceBatches(pairs=str(chain / "pairs"), batch=2, mask=mask)
    stage = Dpo(
        model=str(models[family]), optimizer=OPTIMIZER, scores=str(tmp_path / "s.safetensors")
    )
    attach(stage, data)
    batch = data.batch(0)
    with torch.no_grad():
        scores = stage._scores(batch).sum(1).tolist()
    weights = dict.fromkeys((slot for slot in Slot if slot not in (Slot.NONE, Slot.FORCED)), 1.0)
    found = targets(batch, [[str(n)] for n in range(4)], weights, stage.backbone.ids.vocabulary.pad)
    rows = {slot: stage.backbone.slot_rows(slot) for slot in Slot}
    for target, score in zip(found, scores, strict=True):
        first = next(at for at, slot in enumerate(target.slots) if slot)
        answer = Answer(
            target.read[: first + 1], target.learn[first:], target.slots[first:], 0, first
        )
        seen = iter(led(stage.backbone, answer))
        wanted = 0.0
        for token, slot, weight in zip(
            answer.ids, answer.slots, target.weight[first:], strict=True
        ):
            if slot != Slot.FORCED:
                picked_in, logits = next(seen)
                assert picked_in == slot
                chosen = int((rows[picked_in] == token).nonzero())
                wanted += weight * float(logits.double().log_softmax(-1)[chosen])
        assert score == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("family", ["step1", "llama"])
def test_documents_that_see_one_another_would_be_found(
    family: str, chain: Chain, models: dict[str, Path], attach: Any
) -> None:
    stage, (batch, _) = language(chain, models, attach, "sft", family, **PACKED)
    first, *others = compared(
        stage,
        batch,
        lambda b: stage._loss(b._replace(position_ids=None), count=False),
        learnt(stage, batch),
    )
    assert first.worst < TOLERANCE  # nothing stands before it
    assert others and min(answer.worst for answer in others) > 100 * TOLERANCE


def test_a_state_of_the_id_before_would_be_found(
    chain: Chain, models: dict[str, Path], attach: Any
) -> None:
    stage, (batch, *_) = language(chain, models, attach, "sft", "step1")
    real = Backbone.hidden

    def late(self: Backbone, input_ids: Tensor, **more: Any) -> Any:
        out = real(self, input_ids, **more)
        if input_ids.shape == batch.input_ids.shape:
            out.last_hidden_state = out.last_hidden_state.roll(1, dims=1)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "hidden", late)
        found = compared(stage, batch, lambda b: stage._loss(b, count=False), learnt(stage, batch))
        assert min(answer.worst for answer in found) > 100 * TOLERANCE
