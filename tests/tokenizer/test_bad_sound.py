"""From a file to codes: every odd sound is one clear sentence or has a stated treatment."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from aqaa.audio.file import prepare, read_audio
from aqaa.errors import UsageError
from aqaa.signals import CodePair
from aqaa.tokenizer import released
from aqaa.tokenizer.dual import DualTokenizer
from tests.golden.make import dual, released_dual, speech_tokenizer

RATE_HZ, SECONDS = 16_000, 1.44
Writer = Callable[[Path], None]


def speech(rate_hz: int = RATE_HZ, seconds: float = SECONDS) -> np.ndarray:
    """A voiced sound whose pitch moves, loud from end to end, in steps of 16 bits."""
    t = np.arange(round(rate_hz * seconds)) / rate_hz
    phase = 2 * np.pi * (140 * t + 20 * np.sin(3 * t))
    samples = 0.2 * sum(np.sin(k * phase) / k for k in range(1, 12))
    return (np.round(samples * 2**15) / 2**15).astype(np.float32)


def write(
    samples: np.ndarray, rate_hz: int = RATE_HZ, subtype: str = "PCM_16", cut: int | None = None
) -> Writer:
    def writer(path: Path) -> None:
        soundfile.write(path, samples, rate_hz, subtype=subtype, format="WAV")
        path.write_bytes(path.read_bytes()[:cut])

    return writer


def spoiled(value: float) -> np.ndarray:
    samples = speech()
    samples[700] = value
    return samples


REFUSED: list[tuple[str, Writer, str]] = [
    ("missing", lambda path: None, "does not exist"),
    ("no bytes", lambda path: path.write_bytes(b"") and None, "is an empty file"),
    ("no samples", write(np.zeros(0, dtype=np.float32)), "holds no sound: 0 samples"),
    ("one sample", write(speech()[:1]), "at least 0.12 s of speech are needed"),
    ("under a group", write(speech()[:1919]), "at least 0.12 s of speech are needed"),
    ("silence", write(np.zeros(16_000, dtype=np.float32)), "the sound is silent"),
    ("nan", write(spoiled(np.nan), subtype="FLOAT"), "holds 1 NaN or infinite samples"),
    ("infinite", write(spoiled(np.inf), subtype="FLOAT"), "holds 1 NaN or infinite samples"),
    ("truncated", write(speech(), cut=20_000), "is cut short"),
    ("header only", write(speech(), cut=30), "is cut short"),
    ("not audio", lambda path: path.write_text("words, no sound") and None, "not a readable sound"),
    ("a folder", lambda path: path.mkdir(), "is a folder"),
]

# Each is heard as the plain clip is; the share of codes that must agree (a half or a quarter of a
# sound is the same sound once it is levelled, to the last bit).
TREATED: list[tuple[str, Writer, float]] = [
    ("24-bit", write(speech(), subtype="PCM_24"), 1.0),
    ("float", write(speech(), subtype="FLOAT"), 1.0),
    ("stereo: averaged", write(np.stack([speech(), speech()], 1)), 1.0),
    ("one side silent: halved, then levelled", write(np.stack([speech(), 0 * speech()], 1)), 1.0),
    ("quiet: levelled", write(0.25 * speech(), subtype="FLOAT"), 1.0),
    ("8 kHz: resampled", write(speech(8000), 8000), 0.0),
    ("192 kHz: resampled", write(speech(192_000), 192_000), 0.0),
    ("clipped: taken as it is", write(np.clip(8 * speech(), -1, 1)), 0.0),
]


@pytest.fixture(scope="module", params=["small", "released"])
def tokenizer(request: pytest.FixtureRequest) -> DualTokenizer:
    return dual() if request.param == "small" else released_dual()


def heard(path: Path, tokenizer: DualTokenizer) -> CodePair:
    question = prepare(read_audio(path), peak=tokenizer.peak)
    return tokenizer.encode(torch.from_numpy(question.samples))


@pytest.mark.parametrize(("writer", "sentence"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])  # fmt: skip  # noqa: E501
def test_refused_in_one_sentence(
    writer: Writer, sentence: str, tokenizer: DualTokenizer, tmp_path: Path
) -> None:
    writer(tmp_path / "sound.wav")
    with pytest.raises(UsageError, match=sentence) as error:
        heard(tmp_path / "sound.wav", tokenizer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("writer", "share"), [t[1:] for t in TREATED], ids=[t[0] for t in TREATED])
def test_treated_as_said(
    writer: Writer, share: float, tokenizer: DualTokenizer, tmp_path: Path
) -> None:
    write(speech())(tmp_path / "plain.wav")
    writer(tmp_path / "sound.wav")
    plain, found = (heard(tmp_path / f"{n}.wav", tokenizer) for n in ("plain", "sound"))
    assert found.groups == plain.groups == 12
    for book in ("linguistic", "semantic"):
        pairs = list(zip(getattr(plain, book), getattr(found, book), strict=False))
        assert sum(a == b for a, b in pairs) >= share * len(pairs), book


def test_long_sound_goes_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "PIECE_SAMPLES", 2 * RATE_HZ)
    write(speech(seconds=4.2))(tmp_path / "long.wav")
    assert heard(tmp_path / "long.wav", released_dual()).groups == 35


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        (torch.zeros(2, 1920), r"not torch.float32 of shape \(2, 1920\)"),
        (torch.zeros(1920, dtype=torch.int16), "not torch.int16"),
        (torch.full((1920,), torch.nan), "1920 NaN or infinite"),
    ],
)
def test_samples_that_mean_nothing_get_no_codes(
    samples: torch.Tensor, sentence: str, tokenizer: DualTokenizer
) -> None:
    with pytest.raises(UsageError, match=sentence):
        tokenizer.encode(samples)


def test_a_stream_refuses_and_stands_where_it_stood() -> None:
    clip = torch.from_numpy(speech())
    stream, plain = released_dual().stream(), released_dual().stream()
    stream.push(clip), plain.push(clip)
    with pytest.raises(UsageError, match="NaN"):
        stream.push(clip * torch.nan)
    assert stream.finish() == plain.finish()


def test_the_small_tokenizers_take_whole_groups() -> None:
    book = speech_tokenizer("linguistic", codes=32)
    for samples in (0, 1, 1919):
        with pytest.raises(UsageError, match=f"{samples} samples are not whole groups of 1920"):
            book.encode_sound(torch.zeros(samples))
