"""People, not synthesisers, before both kinds of tokenizers; left out where no recordings lie."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aqaa.audio.file import prepare, read_audio
from aqaa.release import load_tokenizer
from aqaa.signals import GROUP_SAMPLES, LINGUISTIC_PER_GROUP, SEMANTIC_PER_GROUP
from aqaa.tokenizer.dual import DualTokenizer
from tests.conftest import ROOT
from tests.release.test_tokenizer import write_release

SPEECH = Path(os.environ.get("AQAA_SPEECH_DIR", "nowhere"))
CLIPS = [
    *sorted((SPEECH / "digits").glob("*_0.wav"))[::9],  # 8 kHz
    *sorted((SPEECH / "barista").glob("*.flac"))[:3],  # 16 kHz, some far from the microphone
]
pytestmark = pytest.mark.skipif(not CLIPS, reason="AQAA_SPEECH_DIR names no recordings")
each_clip = pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.stem[:12])


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> DualTokenizer:
    """The released classes, small, with random weights."""
    folder = tmp_path_factory.mktemp("released")
    write_release(folder, whole=True)
    return load_tokenizer(folder)


def heard(path: Path, tokenizer: DualTokenizer) -> Tensor:
    return torch.from_numpy(prepare(read_audio(path), peak=tokenizer.peak).samples)


@each_clip
def test_a_stream_hears_what_the_whole_clip_says(path: Path, released: DualTokenizer) -> None:
    samples = heard(path, released)
    whole = released.encode(samples)
    stream, pieces, at, size = released.stream(), [], 0, 311
    while at < len(samples):
        pieces.append(stream.push(samples[at : at + size]))
        at, size = at + size, 1 + (size * 7) % 4001
    pieces.append(stream.finish())
    groups = sum(piece.groups for piece in pieces)
    assert groups == whole.groups >= 1
    linguistic = [c for piece in pieces for c in piece.linguistic]
    semantic = [c for piece in pieces for c in piece.semantic]
    assert linguistic == whole.linguistic[: groups * LINGUISTIC_PER_GROUP]
    assert semantic == whole.semantic[: groups * SEMANTIC_PER_GROUP]


@each_clip
def test_the_bundled_books_tell_sounds_apart(path: Path) -> None:
    tokenizer = DualTokenizer.load(ROOT / "aqaa" / "assets" / "demo" / "tokenizer")
    samples = heard(path, tokenizer)
    codes = tokenizer.encode(samples)
    assert codes.groups == len(samples) // GROUP_SAMPLES >= 1
    if codes.groups > 16:  # an order of two seconds is no one sound
        assert len(set(codes.linguistic)) > 8 and len(set(codes.semantic)) > 8
