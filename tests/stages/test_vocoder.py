"""Training of the voice."""

from functools import partial
from pathlib import Path

import pytest
import torch

from aqaa.data.voice import FlowBatches
from aqaa.layers import spread
from aqaa.runtime.compose import compose
from aqaa.stages.optimizer import OptimizerSettings
from aqaa.stages.vocoder import Flow
from aqaa.storage import load_tensors, read_json
from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer
from aqaa.vocoder.flow import FlowVocoder
from aqaa.vocoder.vocoder import Vocoder
from aqaa.vocoder.waveform import WaveformHead
from tests.conftest import Chain


def flow(chain: Chain, attach, **options: object) -> Flow:
    network = partial(FlowVocoder, width=32, code_width=16, time_width=16)
    made = Flow(network=network, optimizer=OptimizerSettings(lr=1e-2), **options)  # type: ignore[arg-type]
    folders = {"corpus": str(chain / "corpus"), "tokens": str(chain / "tokens")}
    return attach(made, FlowBatches(**folders, batch=2))


def test_embeddings_start_from_the_code_vectors(chain: Chain, attach) -> None:
    started, random = flow(chain, attach), flow(chain, attach, start_from_codebooks=False)
    for i, book in enumerate(("linguistic", "semantic")):
        folder = chain / "tokens" / "tokenizer" / book
        vectors = spread(SpeechTokenizer.load(folder).codebook.vectors, 16, seed=i)
        for stage, alike in ((started, True), (random, False)):
            rows = getattr(stage.flow.conditioning, book).weight
            cosine = torch.nn.functional.cosine_similarity(rows, vectors).mean()
            assert bool(cosine > 0.7) is alike
    started.configure_model()  # a second time: nothing


def test_the_average_is_exported_and_not_trained(chain: Chain, attach, tmp_path: Path) -> None:
    stage = flow(chain, attach, average_decay=0.5)
    assert not any(p.requires_grad for p in stage.average.parameters())
    slow = [p.detach().clone() for p in stage.flow.parameters()]
    for step in range(3):
        with torch.no_grad():
            for p in stage.flow.parameters():
                p.add_(1.0)
        batch = stage.trainer.datamodule.source.batch(step)
        stage.trainer.global_step = step + 1
        stage.on_train_batch_end(None, batch, step)
        new = [p.detach() for p in stage.flow.parameters()]
        slow = new if step == 0 else [(a + b) / 2 for a, b in zip(slow, new, strict=True)]
        slow = [p.clone() for p in slow]
    stage.export(tmp_path)
    saved = FlowVocoder.load(tmp_path)
    for mine, expected in zip(saved.parameters(), slow, strict=True):
        assert torch.allclose(mine, expected, atol=1e-5)


def test_a_condition_that_is_dropped_does_not_reach_the_flow(chain: Chain, attach) -> None:
    stage = flow(chain, attach)
    batch = stage.trainer.datamodule.source.batch(0)
    other = batch.linguistic.roll(1, 1)
    for keep, same in ((0.0, True), (1.0, False)):
        kept = batch._replace(keep=torch.full_like(batch.keep, keep))
        _, a = stage._loss(stage.flow, kept)
        _, b = stage._loss(stage.flow, kept._replace(linguistic=other))
        assert bool(torch.equal(a["flow"], b["flow"])) is same
        assert not torch.equal(a["prior"], b["prior"])


def test_parameters_are_those_of_the_network_alone(chain: Chain) -> None:
    tensors = load_tensors(chain / "vocoder_flow/model/model.safetensors")
    parameters = read_json(chain / "vocoder_flow/lineage.json")["parameters"]
    assert parameters == sum(t.numel() for t in tensors.values())


def test_both_parts_speak(chain: Chain) -> None:
    from aqaa.data.token_store import TokenStore

    store = TokenStore(chain / "tokens")
    pair = store[next(key for key in store.keys() if key.startswith("answers/"))]
    voice = Vocoder(
        FlowVocoder.load(chain / "vocoder_flow/model"),
        WaveformHead.load(chain / "vocoder_waveform/model"),
    )
    sound = voice.speak(pair)
    assert len(sound.samples) == 1920 * pair.groups and abs(sound.samples).max() > 0


@pytest.mark.parametrize("part", ["flow", "waveform"])
def test_a_longer_training_lowers_the_loss(
    part: str, chain: Chain, tmp_path: Path, metrics
) -> None:
    from aqaa.runtime.run import train

    more = ("run.steps=40", "trainer.val_check_interval=20", "trainer.log_every_n_steps=20")
    verb, *words = chain.words(f"vocoder_{part}", tmp_path, *more)
    rows = metrics(train(verb, compose(verb, words)))
    checked = [float(r["validation/loss"]) for r in rows if r["validation/loss"]]
    assert len(checked) == 2 and checked[1] < checked[0]
    if part == "waveform":
        return
    told = [float(r["validation/mel"]) for r in rows if r["validation/mel"]][-1]
    made, off = FlowVocoder.load(tmp_path / "vocoder_flow/model"), []
    folders = {"corpus": str(chain / "corpus"), "tokens": str(chain / "tokens")}
    batch = FlowBatches(**folders).validation()[0]
    for row, frames in enumerate(batch.mask.sum(1).int().tolist()):
        codes = batch.linguistic[row, : frames // 6], batch.semantic[row, : frames // 4]
        mel = made.sample(codes[0][None], codes[1][None], steps=8)
        off.append(float((mel[0] - batch.mel[row, :, :frames]).abs().mean()))
    assert told == pytest.approx(sum(off) / len(off), rel=1e-4)
