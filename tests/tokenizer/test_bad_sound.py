"""From a file to codes: every odd sound is one clear sentence or has a stated treatment."""

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from aqaa.answer import DEMO
from aqaa.audio.file import file_duration_s, prepare, read_audio, trim
from aqaa.data.manifest import read_manifest, write_manifest
from aqaa.data.token_store import TokenStore
from aqaa.data.tokenize import tokenize
from aqaa.errors import UsageError
from aqaa.signals import CodePair, Waveform
from aqaa.tokenizer import released
from aqaa.tokenizer.dual import DualTokenizer
from tests.golden.make import released_dual, speech_tokenizer

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

Shares = dict[str, tuple[float, float]]  # by tokenizers: of linguistic and semantic codes
ALL: Shares = {"trained": (1.0, 1.0), "released": (1.0, 1.0)}
NEARLY: Shares = {"trained": (0.95, 0.9), "released": (0.95, 0.95)}

# Each is heard as the plain clip is; the share of codes that must agree (a half or a quarter of a
# sound is the same sound once it is levelled, to the last bit). What was measured: 192 kHz 1.00 and
# 0.97 trained, 1.00 released; 8 kHz, where fricatives are gone and edges ring, 0.83 and 0.72, 1.00.
TREATED: list[tuple[str, Writer, Shares]] = [
    ("24-bit", write(speech(), subtype="PCM_24"), ALL),
    ("float", write(speech(), subtype="FLOAT"), ALL),
    ("stereo: averaged", write(np.stack([speech(), speech()], 1)), ALL),
    ("one side silent: halved, then levelled", write(np.stack([speech(), 0 * speech()], 1)), ALL),
    ("quiet: levelled", write(0.25 * speech(), subtype="FLOAT"), ALL),
    ("8 kHz: resampled", write(soxr.resample(speech(), RATE_HZ, 8000), 8000),
     {"trained": (0.7, 0.6), "released": (0.95, 0.95)}),
    ("192 kHz: resampled", write(soxr.resample(speech(), RATE_HZ, 192_000), 192_000), NEARLY),
]  # fmt: skip


@pytest.fixture(scope="module", params=["trained", "released"])
def tokenizers(request: pytest.FixtureRequest) -> str:
    """Small ones with their training, or the released kind with random numbers."""
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(tokenizers: str) -> DualTokenizer:
    return released_dual() if tokenizers == "released" else DualTokenizer.load(DEMO / "tokenizer")


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


def agreement(one: CodePair, other: CodePair) -> tuple[float, float]:
    """Share of codes that are equal, of the linguistic and of the semantic book."""
    assert one.groups == other.groups
    books = zip((one.linguistic, one.semantic), (other.linguistic, other.semantic), strict=True)
    linguistic, semantic = (float(np.mean([a == b for a, b in zip(*pair)])) for pair in books)  # noqa: B905
    return linguistic, semantic


@pytest.mark.parametrize(("writer", "shares"), [t[1:] for t in TREATED], ids=[t[0] for t in TREATED])  # fmt: skip  # noqa: E501
def test_treated_as_said(
    writer: Writer, shares: Shares, tokenizers: str, tokenizer: DualTokenizer, tmp_path: Path
) -> None:
    write(speech())(tmp_path / "plain.wav")
    write(speech()[::-1])(tmp_path / "backwards.wav")
    writer(tmp_path / "sound.wav")
    plain, found, other = (
        heard(tmp_path / f"{n}.wav", tokenizer) for n in ("plain", "sound", "backwards")
    )
    assert found.groups == 12
    agreed, floors = agreement(plain, found), shares[tokenizers]
    assert agreed[0] >= floors[0] and agreed[1] >= floors[1]
    apart = agreement(plain, other)
    assert apart[0] < floors[0] and apart[1] < floors[1], "another sound would not pass"


def test_clipped_sound_is_taken_as_it_is(
    tokenizers: str, tokenizer: DualTokenizer, tmp_path: Path
) -> None:
    clipped = np.clip(8 * speech(), -1, 1)
    write(clipped, subtype="FLOAT")(tmp_path / "clipped.wav")
    write(speech())(tmp_path / "plain.wav")
    samples = trim(clipped, RATE_HZ) * np.float32(tokenizer.peak)
    samples = np.pad(samples, (0, -len(samples) % 1920))
    found = heard(tmp_path / "clipped.wav", tokenizer)
    assert found == tokenizer.encode(torch.from_numpy(samples)) and found.groups == 12
    assert found != heard(tmp_path / "plain.wav", tokenizer)
    if tokenizers == "trained":  # peaks cut by half leave most words (measured: 0.88)
        asked = read_audio(DEMO / "question.wav").samples
        write(asked)(tmp_path / "asked.wav")
        write(np.clip(asked * 2 / np.abs(asked).max(), -1, 1))(tmp_path / "cut.wav")
        pair = [heard(tmp_path / f"{name}.wav", tokenizer) for name in ("asked", "cut")]
        assert agreement(*pair)[0] >= 0.75


@pytest.fixture(scope="module")
def two_hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hours of 8 bits at 8 kHz, of which the file system keeps the last two seconds."""
    path = tmp_path_factory.mktemp("long") / "sound.wav"
    rate_hz, seconds = 8000, 7200
    soundfile.write(path, np.zeros(8, np.float32), rate_hz, subtype="PCM_U8", format="WAV")
    header = bytearray(path.read_bytes()[:44])
    header[4:8] = (36 + rate_hz * seconds).to_bytes(4, "little")
    header[40:44] = (rate_hz * seconds).to_bytes(4, "little")
    spoken = np.round(np.tile(speech(rate_hz, 1.0), 2) * 127 + 128).astype(np.uint8).tobytes()
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(44 + rate_hz * seconds - len(spoken))
        file.seek(0, 2)
        file.write(spoken)
    assert file_duration_s(path) == seconds
    return path


def test_hours_are_refused_before_they_are_read_and_a_stretch_of_them_is_heard(
    two_hours: Path, tokenizer: DualTokenizer, tmp_path: Path
) -> None:
    def most_bytes(call: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def refused() -> None:
        with pytest.raises(UsageError, match="would be 7200 s of sound at once, at most 1800 s"):
            heard(two_hours, tokenizer)

    def stretch() -> None:
        kept.append(read_audio(two_hours, start_s=7198.0, end_s=7200.0))

    kept: list[Waveform] = []
    assert most_bytes(refused) < 1_000_000
    assert most_bytes(stretch) < 2_000_000
    alone = np.round(np.tile(speech(8000, 1.0), 2) * 127) / 128
    write(alone.astype(np.float32), 8000, subtype="FLOAT")(tmp_path / "alone.wav")
    pair = [prepare(one, peak=tokenizer.peak).samples for one in (kept[0], read_audio(tmp_path / "alone.wav"))]  # fmt: skip  # noqa: E501
    assert np.array_equal(*pair)


def test_half_an_hour_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(speech(seconds=2.0))(tmp_path / "sound.wav")
    monkeypatch.setattr("aqaa.audio.file.LONGEST_S", 2.0)
    assert len(read_audio(tmp_path / "sound.wav").samples) == 32_000
    write(speech(seconds=2.01))(tmp_path / "sound.wav")
    with pytest.raises(UsageError, match="at most 2 s are read"):
        read_audio(tmp_path / "sound.wav")


def test_long_sound_goes_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "PIECE_SAMPLES", 2 * RATE_HZ)
    write(speech(seconds=4.2))(tmp_path / "long.wav")
    assert heard(tmp_path / "long.wav", released_dual()).groups == 35


def test_extraction_refuses_and_treats_the_same(
    two_hours: Path, tokenizer: DualTokenizer, tmp_path: Path
) -> None:
    """Every row of both tables in one manifest: a list of the one, codes of the other."""
    books, sound, rows = tmp_path / "books", tmp_path / "sound", []
    tokenizer.save(books)
    sound.mkdir()
    cases = [*((n, w) for n, w, _ in REFUSED), *((n, w) for n, w, _ in TREATED)]
    for number, (_, writer) in enumerate(cases):
        writer(sound / f"{number}.wav")
        rows.append({"id": f"c{number}", "audio": {"path": f"{number}.wav"}})
    (sound / "hours.wav").hardlink_to(two_hours)
    rows.append({"id": "hours", "audio": {"path": "hours.wav"}})
    rows.append({"id": "end", "audio": {"path": "hours.wav", "start": 7198.0, "end": 7200.0}})
    write_manifest(sound / "m.jsonl", rows)
    tokenize(corpus=str(sound), tokenizers=str(books), out=str(tmp_path / "out"), bad_share=0.9,
             device="cpu")  # fmt: skip
    told = [(row["key"], row["reason"]) for row in read_manifest(tmp_path / "out/bad.jsonl")]
    sentences = [*(sentence for _, _, sentence in REFUSED), "would be 7200 s of sound at once"]
    keys = [*(f"m/c{i}" for i in range(len(REFUSED))), "m/hours"]
    assert [key for key, _ in told] == keys
    for (key, reason), sentence in zip(told, sentences, strict=True):
        assert re.search(sentence, reason) and "\n" not in reason, key
    store = TokenStore(tmp_path / "out")
    assert store.keys() == [*(f"m/c{i}" for i in range(len(REFUSED), len(cases))), "m/end"]
    for key in store.keys()[:-1]:
        assert store[key] == heard(sound / f"{key.removeprefix('m/c')}.wav", tokenizer), key
    end = read_audio(two_hours, start_s=7198.0, end_s=7200.0)
    samples = torch.from_numpy(prepare(end, peak=tokenizer.peak).samples)
    assert store["m/end"] == tokenizer.encode(samples)


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
