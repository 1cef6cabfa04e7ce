"""`aqaa answer`: text on the terminal, speech in a file, one sentence where that cannot be."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from aqaa import answer as verb
from aqaa import cli
from aqaa.audio.file import read_audio, write_audio
from aqaa.errors import UsageError
from aqaa.lineage import IDS, tokenizer_hash
from aqaa.pipeline import Pipeline, Reply
from aqaa.signals import QUESTION_RATE_HZ
from aqaa.storage import load_tensors, read_json, verify_manifest, write_json
from tests.golden.make import backbone, dual, vocoder

MB = 1_000_000


@pytest.fixture(scope="module")
def organs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("organs")
    dual().save(folder / "tokenizer")
    backbone(folder / "backbone", tokenizer_hash=tokenizer_hash(folder / "tokenizer"))
    vocoder().save(folder / "vocoder")
    places = {"flow": "vocoder/flow", "waveform": "vocoder/waveform"}
    places |= {"tokenizer": "tokenizer", "backbone": "backbone"}
    return {name: str(folder / place) for name, place in places.items()}


@pytest.fixture(scope="module")
def run(organs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that holds a model."""
    folder = tmp_path_factory.mktemp("run")
    verb.bundle(organs=organs, out=str(folder / "model"))
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder of one's own; the command line's settings do not stay."""
    monkeypatch.chdir(tmp_path)
    for name in ("PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def tone(rate_hz: int = QUESTION_RATE_HZ, seconds: float = 1.3) -> np.ndarray:
    """A sweep (T,) that starts and ends softly."""
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    return (0.4 * np.sin(2 * np.pi * (150 + 90 * t) * t) * np.hanning(len(t))).astype(np.float32)


@pytest.fixture
def question(tmp_path: Path) -> Path:
    write_audio(tmp_path / "question.wav", tone(), QUESTION_RATE_HZ)
    return tmp_path / "question.wav"


def test_the_answer_is_printed_and_written(
    run: Path, question: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["answer", str(question), f"model={run / 'model'}"]) == 0
    reply = Pipeline.load(run / "model").answer(read_audio(question))
    assert reply.sound is not None
    assert capfd.readouterr().out == (
        f"model: {run / 'model'}\ntext:  {reply.text}\n"
        f"sound: answer.wav, {reply.sound.duration_s:.2f} s\n"
    )
    written = read_audio("answer.wav")
    assert written.duration_s == reply.sound.duration_s
    assert np.abs(written.samples - reply.sound.samples).max() < 2 / 2**15
    assert soundfile.info("answer.wav").subtype == "PCM_16"
    assert sorted(p.name for p in Path().iterdir()) == ["answer.wav", "question.wav"]


def test_the_flow_is_solved_as_the_command_line_says(
    run: Path, question: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sounds = {}
    for name, words in {
        "plain": [],
        "same": ["steps=8", "guidance=0.0", "solver=euler"],
        "other": ["steps=4", "guidance=0.7", "solver=adams"],
    }.items():
        assert cli.main(["answer", str(question), f"model={run}", f"out={name}.wav", *words]) == 0
        sounds[name] = Path(f"{name}.wav").read_bytes()
    assert sounds["plain"] == sounds["same"] != sounds["other"]
    pipeline = Pipeline.load(run / "model")
    vocoder: Any = pipeline.vocoder
    vocoder.steps, vocoder.guidance, vocoder.solver = 4, 0.7, "adams"
    reply = pipeline.answer(read_audio(question))
    assert reply.sound is not None
    assert np.abs(read_audio("other.wav").samples - reply.sound.samples).max() < 2 / 2**15
    capfd.readouterr()
    assert cli.main(["answer", str(question), f"model={run}", "out=x.wav", "solver=heun"]) == 2
    assert "no solver is called heun" in capfd.readouterr().err and not Path("x.wav").exists()


@pytest.mark.parametrize(("rate_hz", "channels"), [(48_000, 2), (8_000, 1)])
def test_any_rate_and_channel_count_is_heard(
    rate_hz: int, channels: int, run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "q.wav"
    soundfile.write(path, np.repeat(tone(rate_hz)[:, None], channels, 1), rate_hz)
    assert cli.main(["answer", str(path), f"model={run}", "out=a.wav"]) == 0
    assert read_audio("a.wav").duration_s > 0


def _nan() -> np.ndarray:
    sound = tone()
    sound[99] = np.nan
    return sound


BAD = {
    "missing": (None, "does not exist"),
    "empty": (b"", "is an empty file (0 bytes)"),
    "text": (b"hello, is anybody there?\n" * 40, "is not a readable sound file"),
    "silent": (np.zeros(16_000, np.float32), "the sound is silent"),
    "short": (tone(seconds=0.1), "at least 0.12 s of speech are needed"),
    "nan": (_nan(), "1 NaN or infinite samples"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_question_is_one_sentence_and_no_answer(
    name: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content, sentence = BAD[name]
    path = tmp_path / f"{name}.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        soundfile.write(path, content, QUESTION_RATE_HZ, subtype="FLOAT")
    assert cli.main(["answer", str(path), f"model={run}"]) == 2
    streams = capfd.readouterr()
    assert sentence in streams.err and streams.err.count("\n") == 1
    assert streams.err.startswith("aqaa: ") and not streams.out
    assert [p.name for p in tmp_path.iterdir()] == ([path.name] if path.exists() else [])


def test_a_folder_that_is_no_model_is_one_sentence(
    run: Path, organs: dict[str, str], question: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder, sentence in (
        ("nowhere", "nowhere does not exist: give the folder of a model"),
        (organs["backbone"], "holds a backbone alone: put a model together with `aqaa bundle"),
        (organs["tokenizer"], "is not a whole model: it lacks tokenizer, backbone, vocoder"),
        (str(question), "is a file: give the folder of a model"),
    ):
        assert cli.main(["answer", str(question), f"model={folder}"]) == 2
        streams = capfd.readouterr()
        assert sentence in streams.err and streams.err.count("\n") == 1 and not streams.out
    assert not Path("answer.wav").exists()


def test_a_model_that_says_nothing_leaves_no_file(
    run: Path, question: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "answer", lambda *_, **__: Reply("only words", [], None, True))
    assert cli.main(["answer", str(question), f"model={run}"]) == 2
    streams = capfd.readouterr()
    assert "text:  only words\n" in streams.out
    assert "said nothing to" in streams.err and "answer.wav was not written" in streams.err
    assert not Path("answer.wav").exists()


def test_the_question_is_never_replaced(
    run: Path, question: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = question.read_bytes()
    assert cli.main(["answer", str(question), f"model={run}", "out=./question.wav"]) == 2
    assert "the answer would replace the question" in capfd.readouterr().err
    assert question.read_bytes() == before


def test_a_model_is_found_in_its_folder_and_in_a_run(run: Path, tmp_path: Path) -> None:
    model = run / "model"
    assert verb.locate(str(model)) == (model, str(model))
    assert verb.locate(str(run)) == (model, str(model))
    (tmp_path / "model" / "backbone").mkdir(parents=True)
    with pytest.raises(UsageError, match="is not a whole model"):
        verb.locate(str(tmp_path))
    write_json(tmp_path / "model" / IDS, {})  # a training run's model is one organ
    with pytest.raises(UsageError, match="holds a backbone alone"):
        verb.locate(str(tmp_path))


def test_without_a_model_the_demo_speaks(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = tmp_path / "demo"
    monkeypatch.setattr(verb, "DEMO", demo)
    with pytest.raises(UsageError, match="holds no demo checkpoint: give model=FOLDER"):
        verb.locate(None)
    shutil.copytree(run / "model", demo)
    write_json(demo / "card.json", {"name": "aqaa-demo", "summary": "a toy"})
    assert verb.locate(None) == (demo, "aqaa-demo (bundled; a toy)")


def test_a_bundle_is_sealed_and_may_be_half_as_large(
    run: Path, organs: dict[str, str], tmp_path: Path
) -> None:
    assert verb.bundle(organs=organs, out=str(tmp_path / "half"), half=True) == tmp_path / "half"
    assert verify_manifest(run / "model") and verify_manifest(tmp_path / "half")
    for file in (tmp_path / "half").rglob("*.safetensors"):
        whole = load_tensors(run / "model" / file.relative_to(tmp_path / "half"))
        for name, tensor in load_tensors(file).items():
            narrow = whole[name].half() if whole[name].is_floating_point() else whole[name]
            assert torch.equal(tensor, narrow), name
    with pytest.raises(UsageError, match="nowhere"):
        verb.bundle(organs={**organs, "flow": "nowhere"}, out=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


# ---- the checkpoint in the package

bundled = pytest.mark.skipif(
    not (verb.DEMO / "backbone").is_dir(), reason="aqaa/assets/demo holds no checkpoint yet"
)


@bundled
def test_the_demo_is_whole_and_small() -> None:
    assert verify_manifest(verb.DEMO, allow_extra=True)
    size = sum(p.stat().st_size for p in verb.DEMO.rglob("*") if p.is_file())
    assert size <= 20 * MB
    for file in verb.DEMO.rglob("*.safetensors"):
        assert torch.float32 not in {tensor.dtype for tensor in load_tensors(file).values()}, file


@bundled
def test_the_recogniser_understands_the_demos_answer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pocketsphinx", reason="pocketsphinx of the demo extra is not installed")
    from aqaa.data.domain import EXTRA_PRONUNCIATIONS, answers
    from aqaa.evaluation.recognise import Recogniser

    card = read_json(verb.DEMO / "card.json")
    assert cli.main(["answer", str(verb.DEMO / "question.wav")]) == 0
    said = capfd.readouterr().out
    assert f"model: {card['name']} (bundled; " in said
    assert f"text:  {card['question']['expected']}\n" in said
    texts = list(dict.fromkeys(text for text, _ in answers(card["data"]["families"])))
    recogniser = Recogniser(texts, EXTRA_PRONUNCIATIONS)
    heard = recogniser(read_audio(tmp_path / "answer.wav").samples)
    assert heard == card["question"]["expected"]
