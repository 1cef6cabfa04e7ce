"""What all sources of batches promise: a batch is a pure function of (seed, step)."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch

from aqaa.data.augment import Augmentation
from aqaa.data.dialogues import DialogueBatches
from aqaa.data.module import DataModule
from aqaa.data.preferences import PreferenceBatches
from aqaa.data.speech import SpeechBatches
from aqaa.data.token_voice import SoundBatches, TokenFlowBatches
from aqaa.data.voice import FlowBatches, WaveformBatches
from tests.conftest import Chain

STEPS = 40


def dialogues(chain: Chain, seed: int) -> DialogueBatches:
    from aqaa.backbone.loading import Ids

    tasks = {
        "aqtaa": {"share": 2.0, "batch": 3},
        "asr": {"share": 1.0, "batch": 4},
        "tts": {"share": 1.0},
    }
    folders = {"corpus": str(chain / "corpus"), "tokens": str(chain / "tokens")}
    source = DialogueBatches(**folders, tasks=tasks, steps=STEPS, code_noise=0.3, seed=seed)
    source.bind(Ids.load(chain / "init"))
    return source


def packed(chain: Chain, seed: int) -> DialogueBatches:
    from aqaa.backbone.loading import Ids

    tasks = {"aqtaa": {"share": 2.0}, "asr": {"share": 1.0}, "tts": {"share": 1.0}}
    folders = {"corpus": str(chain / "corpus"), "tokens": str(chain / "tokens")}
    more = {"code_noise": 0.3, "row_tokens": 512, "rows": 2}
    source = DialogueBatches(**folders, tasks=tasks, steps=STEPS, seed=seed, **more)
    source.bind(Ids.load(chain / "init"))
    return source


def preferences(chain: Chain, seed: int) -> PreferenceBatches:
    from aqaa.backbone.loading import Ids

    source = PreferenceBatches(pairs=str(chain / "pairs"), batch=2, seed=seed)
    source.bind(Ids.load(chain / "init"))
    return source


def speech(chain: Chain, seed: int) -> SpeechBatches:
    corpus = str(chain / "corpus")
    return SpeechBatches(corpus=corpus, batch=6, augmentation=Augmentation(), seed=seed)


def flow(chain: Chain, seed: int) -> FlowBatches:
    folders = {"corpus": str(chain / "corpus"), "tokens": str(chain / "tokens")}
    return FlowBatches(**folders, batch=4, seed=seed)


def waveform(chain: Chain, seed: int) -> WaveformBatches:
    return WaveformBatches(corpus=str(chain / "corpus"), batch=4, seed=seed)


def token_flow(chain: Chain, seed: int) -> TokenFlowBatches:
    folders = {"corpus": str(chain / "corpus"), "tokens": str(chain / "tokens")}
    return TokenFlowBatches(**folders, batch=4, longest_groups=9, corruption=(0.1, 0.1), seed=seed)


def sound(chain: Chain, seed: int) -> SoundBatches:
    return SoundBatches(corpus=str(chain / "corpus"), batch=4, seed=seed)


SOURCES = [dialogues, packed, preferences, speech, flow, waveform, token_flow, sound]


def flat(batch: Any) -> list[Any]:
    """Tensors of a batch as lists, so that == means the same bits."""
    parts = [flat(part) if isinstance(part, tuple) else part for part in batch]
    return [part.tolist() if isinstance(part, torch.Tensor) else part for part in parts]


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_a_batch_depends_on_seed_and_step_alone(
    make: Callable[[Chain, int], Any], chain: Chain
) -> None:
    walked = make(chain, 0)
    order = {step: flat(walked.batch(step)) for step in range(8)}
    other = make(chain, 0)
    other.validation()
    torch.manual_seed(99)  # nobody else's dice
    for step in (7, 2, 5, 2, 0):
        assert flat(other.batch(step)) == order[step] == flat(walked.batch(step))
    assert any(flat(make(chain, 1).batch(step)) != order[step] for step in range(4))
    assert any(order[step] != order[0] for step in range(1, 8))


CHECKED = [source for source in SOURCES if source is not preferences]


@pytest.mark.parametrize("make", CHECKED, ids=lambda make: make.__name__)
def test_the_periodic_check_never_changes(make: Callable[[Chain, int], Any], chain: Chain) -> None:
    source = make(chain, 0)
    before = [flat(batch) for batch in source.validation()]
    source.batch(3)
    assert [flat(batch) for batch in source.validation()] == before != []


def test_a_mixture_goes_past_its_plan(chain: Chain) -> None:
    source = dialogues(chain, 0)
    order = [flat(source.batch(step)) for step in range(STEPS)]
    assert flat(source.batch(2 * STEPS + 3)) == flat(dialogues(chain, 0).batch(2 * STEPS + 3))
    assert [flat(source.batch(step)) for step in range(STEPS)] == order


@pytest.mark.parametrize("make", [dialogues, packed], ids=lambda make: make.__name__)
def test_loader_workers_change_nothing(make: Callable[[Chain, int], Any], chain: Chain) -> None:
    alone = DataModule(make(chain, 0)).train_dataloader()
    shared = DataModule(make(chain, 0), workers=2).train_dataloader()
    for one, other in zip(islice(alone, 7), islice(shared, 7), strict=True):
        assert flat(one) == flat(other)
