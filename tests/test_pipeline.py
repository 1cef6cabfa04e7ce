"""A spoken question in, a spoken answer out, from one folder."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aqaa.audio.file import read_audio, write_audio
from aqaa.backbone.decoding import Sampling
from aqaa.errors import UsageError
from aqaa.lineage import tokenizer_hash
from aqaa.pipeline import Pipeline
from aqaa.signals import QUESTION_RATE_HZ, CodePair, Turn, Waveform
from aqaa.storage import load_tensors, verify_manifest
from aqaa.stream import Slot
from tests.golden.make import WORDS, backbone, dual, vocoder

QUESTION = CodePair([1, 2, 3, 4], [5, 6, 7, 8, 9, 10])
SHORT = Sampling(max_tokens=40)


@pytest.fixture(scope="module")
def organs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("organs")
    dual().save(folder / "tokenizer")
    backbone(folder / "backbone", tokenizer_hash=tokenizer_hash(folder / "tokenizer"))
    vocoder().save(folder / "vocoder")
    return {
        "tokenizer": folder / "tokenizer",
        "backbone": folder / "backbone",
        "flow": folder / "vocoder" / "flow",
        "waveform": folder / "vocoder" / "waveform",
    }


@pytest.fixture(scope="module")
def pipeline(organs: dict[str, Path]) -> Pipeline:
    return Pipeline.from_folders(**organs)


@pytest.fixture(scope="module")
def question() -> Waveform:
    seconds = np.arange(int(1.7 * QUESTION_RATE_HZ)) / QUESTION_RATE_HZ
    tone = np.sin(2 * np.pi * (150 + 90 * seconds) * seconds) * np.hanning(len(seconds))
    return Waveform((0.4 * tone).astype(np.float32), QUESTION_RATE_HZ)


def test_a_question_is_answered_end_to_end(
    pipeline: Pipeline, question: Waveform, tmp_path: Path
) -> None:
    write_audio(tmp_path / "question.wav", question.samples, question.rate_hz)
    reply = pipeline.answer(read_audio(tmp_path / "question.wav"))
    ids = pipeline.backbone.ids
    parsed = ids.layout.parse(reply.ids, ids.text, ids.vocabulary)
    assert reply.text == parsed.text
    assert reply.complete == parsed.complete
    groups = sum(pair.groups for pair in parsed.speech)
    assert reply.sound is not None
    assert reply.sound.duration_s == pytest.approx(0.12 * groups)
    assert np.isfinite(reply.sound.samples).all()
    assert pipeline.answer(read_audio(tmp_path / "question.wav")).ids == reply.ids


def test_listening_gives_whole_groups(pipeline: Pipeline, question: Waveform) -> None:
    codes = pipeline.listen(question)
    assert codes.groups > 5
    assert (len(codes.linguistic), len(codes.semantic)) == (2 * codes.groups, 3 * codes.groups)


def test_a_written_answer_has_no_sound(pipeline: Pipeline) -> None:
    reply = pipeline.reply(QUESTION, mode="text", sampling=SHORT)
    assert reply.sound is None
    spoken = pipeline.reply(QUESTION, mode="speech", sampling=SHORT)
    assert (spoken.text, spoken.sound is None) == ("", False)


@pytest.mark.parametrize("history", ["text", "audio", "none"])
def test_earlier_turns_are_heard_as_they_were_trained(organs: dict[str, Path], history) -> None:
    """The prompt of a third question is the beginning of the sequence that trains its answer."""
    made = Pipeline.from_folders(**organs)
    ids = made.backbone.ids
    ids = replace(ids, layout=replace(ids.layout, history=history))
    made.backbone = replace(made.backbone, ids=ids)
    codes = CodePair([3, 1, 4, 1], [5, 9, 2, 6, 5, 3])
    earlier = [
        Turn("human", speech=[codes], words=WORDS[0]),
        Turn("assistant", WORDS[1], [QUESTION]),
    ] * 2
    prompts: list[list[int]] = []
    decoder = made._decoder
    made._decoder = SimpleNamespace(  # type: ignore[assignment]
        answer=lambda prompt, **more: prompts.append(prompt) or decoder.answer(prompt, **more)
    )
    reply = made.reply(QUESTION, sampling=SHORT, history=earlier)
    asked = Turn("human", speech=[QUESTION], words=WORDS[2])
    answer = Turn("assistant", WORDS[2], [codes], loss=True)
    trained = ids.layout.encode([*earlier, asked, answer], ids.text, ids.vocabulary)
    (seen,) = prompts
    learnt = [slot != Slot.NONE for slot in trained.slots]
    assert trained.ids[: len(seen)] == seen and learnt.index(True) == len(seen)
    assert reply.ids == decoder.answer(seen, sampling=SHORT)
    alone = made.reply(QUESTION, sampling=SHORT) and prompts[-1]
    assert (alone == seen) is (history == "none")


def test_the_seed_decides_a_sampled_answer(pipeline: Pipeline) -> None:
    warm = Sampling(temperature=1.0, max_tokens=40)
    one, same, other = (pipeline.reply(QUESTION, sampling=warm, seed=s).ids for s in (1, 1, 2))
    assert one == same
    assert one != other


def test_saved_and_loaded_it_gives_the_same_answer(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.save(tmp_path / "model")
    loaded = Pipeline.load(tmp_path / "model")
    assert verify_manifest(tmp_path / "model")
    wanted, found = (p.reply(QUESTION, sampling=SHORT) for p in (pipeline, loaded))
    assert found.ids == wanted.ids
    assert found.sound is not None and wanted.sound is not None
    assert np.array_equal(found.sound.samples, wanted.sound.samples)
    assert loaded.backbone.ids.tokenizer_hash == pipeline.backbone.ids.tokenizer_hash


def test_stored_as_halves_it_is_whole_and_half_as_large(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    pipeline.save(tmp_path / "whole")
    pipeline.save(tmp_path / "half", torch.float16)
    sizes = {
        name: sum(p.stat().st_size for p in (tmp_path / name).rglob("*.safetensors"))
        for name in ("whole", "half")
    }
    assert sizes["half"] < 0.55 * sizes["whole"]
    for file in (tmp_path / "half").rglob("*.safetensors"):
        assert torch.float32 not in {t.dtype for t in load_tensors(file).values()}, file
    reply = Pipeline.load(tmp_path / "half").reply(QUESTION, sampling=SHORT)
    assert reply.sound is not None
    # A model that was stored as halves is stored again without a loss.
    Pipeline.load(tmp_path / "half").save(tmp_path / "again", torch.float16)
    assert Pipeline.load(tmp_path / "again").reply(QUESTION, sampling=SHORT).ids == reply.ids


def test_a_model_folder_is_replaced_as_a_whole(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.save(tmp_path / "model")
    before = verify_manifest(tmp_path / "model")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(pipeline.backbone), "save", full)
    with pytest.raises(UsageError, match="cannot write .*model: No space left on device"):
        pipeline.save(tmp_path / "model")
    assert verify_manifest(tmp_path / "model") == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_other_tokenizers_are_refused(organs: dict[str, Path], tmp_path: Path) -> None:
    dual(seed=7).save(tmp_path / "other")
    trained_on, found = tokenizer_hash(organs["tokenizer"]), tokenizer_hash(tmp_path / "other")
    with pytest.raises(UsageError) as info:
        Pipeline.from_folders(**{**organs, "tokenizer": tmp_path / "other"})
    assert f"was trained on the codes of tokenizers {trained_on}" in str(info.value)
    assert f"holds {found}" in str(info.value)
    assert "\n" not in str(info.value)


def test_a_folder_that_is_not_whole_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lacks tokenizer, backbone, vocoder"):
        Pipeline.load(tmp_path)
    pipeline.save(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "vocoder")
    with pytest.raises(UsageError, match="is not a whole model: it lacks vocoder"):
        Pipeline.load(tmp_path / "model")


def test_damage_is_found_and_a_card_beside_is_not_damage(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    pipeline.save(tmp_path / "model")
    (tmp_path / "model" / "CARD.md").write_text("who made this")
    assert Pipeline.load(tmp_path / "model")
    weights = tmp_path / "model" / "vocoder" / "flow" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UsageError, match="model.safetensors is damaged"):
        Pipeline.load(tmp_path / "model")


def test_exchanged_vocoder_folders_are_refused(organs: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="holds a WaveformHead, not a FlowVocoder"):
        Pipeline.from_folders(**{**organs, "flow": organs["waveform"]})
