"""Sound files: what is read, what is refused and in which words, what is written."""

import errno
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from aqaa.audio.file import (
    PEAK,
    cut_audio,
    file_duration_s,
    file_rate_hz,
    levelled,
    pad_to_groups,
    prepare,
    read_audio,
    trim,
    write_audio,
)
from aqaa.errors import UsageError
from aqaa.signals import GROUP_SAMPLES, QUESTION_RATE_HZ, Waveform


def tone(seconds: float, rate_hz: int = QUESTION_RATE_HZ, hz: float = 440.0) -> np.ndarray:
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.4 * np.sin(2 * np.pi * hz * time_s)).astype(np.float32)


def saved(path: Path, samples: np.ndarray, rate_hz: int, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return path


def spectral_peak_hz(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * QUESTION_RATE_HZ / len(samples))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tone(0.5), QUESTION_RATE_HZ)
    back = read_audio(tmp_path / "a.wav")
    assert back.rate_hz == QUESTION_RATE_HZ
    assert back.samples.dtype == np.float32 and back.samples.shape == (8000,)
    np.testing.assert_allclose(back.samples, tone(0.5), atol=1 / 32767)
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"


def test_the_header_tells_rate_and_duration(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(12_345, dtype=np.float32), 24_000)
    assert (file_rate_hz(tmp_path / "a.wav"), file_duration_s(tmp_path / "a.wav")) == (
        24_000,
        12_345 / 24_000,
    )
    (tmp_path / "b.wav").write_text("words")
    with pytest.raises(UsageError, match="b.wav is not a readable sound file"):
        file_duration_s(tmp_path / "b.wav")


def test_a_level_is_reached_unless_the_sound_is_nearly_silent() -> None:
    tone = np.sin(np.arange(400) / 5).astype(np.float32)
    for loud in (1.0, 0.3, 0.01):
        assert np.abs(levelled(loud * tone, 0.999)).max() == pytest.approx(0.999, rel=1e-3)
    assert np.abs(levelled(1e-4 * tone, 0.999)).max() == pytest.approx(0.00999, rel=1e-3)
    assert len(levelled(tone[:0], 0.5)) == 0


def test_loud_samples_are_clipped_not_wrapped(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", np.array([2.0, -2.0, 0.0] * 100, np.float32), 16_000)
    back = read_audio(tmp_path / "a.wav").samples
    assert back.max() > 0.999 and back.min() <= -0.999


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_audio(tmp_path / "a.wav", tone(0.2), QUESTION_RATE_HZ)
    before = (tmp_path / "a.wav").read_bytes()

    def full(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match="cannot write .*a.wav: No space left on device"):
        write_audio(tmp_path / "a.wav", tone(0.3), QUESTION_RATE_HZ)
    assert (tmp_path / "a.wav").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 48_000])
def test_other_rates_are_resampled(tmp_path: Path, rate_hz: int) -> None:
    path = saved(tmp_path / "a.wav", tone(1.0, rate_hz), rate_hz)
    wave = read_audio(path)
    assert file_rate_hz(path) == rate_hz
    assert len(wave.samples) == pytest.approx(QUESTION_RATE_HZ, abs=1)
    assert spectral_peak_hz(wave.samples) == pytest.approx(440, abs=2)
    assert np.abs(wave.samples[2000:-2000]).max() == pytest.approx(0.4, abs=0.01)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left = tone(0.3)
    path = saved(tmp_path / "a.wav", np.stack([left, np.zeros_like(left)], axis=1), 16_000)
    np.testing.assert_allclose(read_audio(path).samples, left / 2, atol=1e-4)


def test_a_stretch_is_exact_to_the_sample(tmp_path: Path) -> None:
    ramp = (np.arange(10 * GROUP_SAMPLES) / 32768).astype(np.float32)
    path = saved(tmp_path / "a.wav", ramp, QUESTION_RATE_HZ)
    wave = read_audio(path, start_s=0.24, end_s=0.84)
    np.testing.assert_array_equal(wave.samples, ramp[2 * GROUP_SAMPLES : 7 * GROUP_SAMPLES])


@pytest.mark.parametrize(("start_s", "end_s"), [(-0.1, 0.2), (0.4, 0.2), (0.0, 1.2), (2.0, None)])
def test_a_stretch_outside_the_file_is_refused(
    tmp_path: Path, start_s: float, end_s: float | None
) -> None:
    path = saved(tmp_path / "a.wav", tone(1.0), 16_000)
    with pytest.raises(UsageError, match=r"lasts 1\.000 s: the stretch .* lies outside"):
        read_audio(path, start_s=start_s, end_s=end_s)


def test_flac_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.flac", tone(0.5), 16_000)
    assert len(read_audio(path).samples) == 8000


def cut(path: Path, keep_bytes: int) -> Path:
    path.write_bytes(path.read_bytes()[:keep_bytes])
    return path


def make_bad(kind: str, folder: Path) -> Path:
    path = folder / "bad.wav"
    if kind == "folder":
        path.mkdir()
    elif kind == "no bytes":
        path.touch()
    elif kind == "no samples":
        saved(path, np.zeros(0, np.float32), 16_000)
    elif kind in ("nan", "inf"):
        samples = tone(0.5)
        samples[7] = float(kind)
        saved(path, samples, 16_000, "FLOAT")
    elif kind == "text":
        path.write_text("what is two plus two")
    elif kind == "cut wav":
        cut(saved(path, tone(1.0), 16_000), 10_000)
    elif kind == "header only":
        cut(saved(path, tone(1.0), 16_000), 20)
    elif kind == "cut flac":
        path = cut(saved(folder / "bad.flac", tone(1.0), 16_000), 3_000)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("folder", "is a folder, not a sound file"),
        ("no bytes", r"is an empty file \(0 bytes\)"),
        ("no samples", "holds no sound: 0 samples"),
        ("nan", "holds 1 NaN or infinite samples"),
        ("inf", "holds 1 NaN or infinite samples"),
        ("text", "is not a readable sound file"),
        ("cut wav", "is cut short: its header promises 32044 bytes, the file has 10000"),
        ("header only", "is cut short"),
        ("cut flac", "is cut short|is not a readable sound file"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, kind: str, message: str) -> None:
    path = make_bad(kind, tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        read_audio(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_wav_written_to_a_pipe_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.wav", tone(0.5), 16_000)
    raw = bytearray(path.read_bytes())
    raw[4:8] = raw[40:44] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(raw)
    assert len(read_audio(path).samples) == 8000


def test_trim_keeps_30_ms_before_and_50_ms_after() -> None:
    samples = np.zeros(16_000, np.float32)
    samples[4000:8000] = 0.3
    assert len(trim(samples, 16_000)) == 480 + 4000 + 800
    assert np.flatnonzero(trim(samples, 16_000))[0] == 480


def test_trim_goes_by_the_peak_not_by_a_fixed_level() -> None:
    samples = np.zeros(16_000, np.float32)
    samples[4000:8000] = 0.3
    assert len(trim(samples * 1e-2, 16_000)) == len(trim(samples, 16_000))


@pytest.mark.parametrize(("given", "padded"), [(0, 0), (1, 1920), (1920, 1920), (1921, 3840)])
def test_padding_to_whole_groups(given: int, padded: int) -> None:
    out = pad_to_groups(np.ones(given, np.float32))
    assert len(out) == padded and out.sum() == given


def test_prepare_trims_scales_and_pads() -> None:
    samples = np.concatenate([np.zeros(5000, np.float32), tone(0.5) * 0.1, np.zeros(9000, "f4")])
    wave = prepare(Waveform(samples, QUESTION_RATE_HZ))
    assert len(wave.samples) % GROUP_SAMPLES == 0
    assert len(wave.samples) == 5 * GROUP_SAMPLES  # 480 + 8000 + 800 samples, rounded up
    assert np.abs(wave.samples).max() == pytest.approx(PEAK, rel=1e-6)
    assert wave.samples.dtype == np.float32


def test_prepare_changes_nothing_the_second_time() -> None:
    once = prepare(Waveform(tone(0.7), QUESTION_RATE_HZ))
    np.testing.assert_array_equal(prepare(once).samples, once.samples)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(16_000, np.float32), r"silent: its peak is 0\.0e\+00, below 0\.001"),
        (tone(1.0) * 1e-3, r"silent: its peak is 4\.0e-04"),
        (tone(0.1), r"lasts 0\.100 s; at least 0\.12 s"),
        (np.zeros(0, np.float32), r"lasts 0\.000 s"),
        (np.full(16_000, np.nan, np.float32), "NaN or infinite"),
    ],
)
def test_prepare_refuses_what_holds_no_speech(samples: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepare(Waveform(samples, QUESTION_RATE_HZ))


def test_prepare_refuses_another_rate() -> None:
    with pytest.raises(UsageError, match="8000 Hz must be resampled to 16000 Hz"):
        prepare(Waveform(tone(1.0, 8000), 8000))


def test_prepare_takes_the_shortest_sound() -> None:
    assert len(prepare(Waveform(tone(0.12), QUESTION_RATE_HZ)).samples) == GROUP_SAMPLES


@pytest.mark.parametrize(("subtype", "dtype"), [("PCM_16", "int16"), ("PCM_24", "int32")])
def test_a_stretch_is_cut_sample_by_sample(subtype: str, dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(-30_000, 30_000, (11_025, 2)).astype(dtype)
    samples *= 1 if dtype == "int16" else 256  # 24 bits lie in the upper ones
    for name in ("a.wav", "a.flac"):
        soundfile.write(str(tmp_path / name), samples, 11_025, subtype=subtype)
        cut_audio(tmp_path / name, tmp_path / "cut.wav", start_s=0.25, end_s=0.7000001)
        found, rate_hz = soundfile.read(str(tmp_path / "cut.wav"), dtype=dtype)
        assert rate_hz == 11_025 and soundfile.info(str(tmp_path / "cut.wav")).subtype == subtype
        start, end = round(0.25 * 11_025), round(0.7000001 * 11_025)
        assert np.array_equal(found, samples[start:end])
        assert file_duration_s(tmp_path / name) == 1.0


def test_what_was_stored_lossy_is_cut_as_floats(tmp_path: Path) -> None:
    wave = np.sin(np.arange(16_000) * 0.05).astype(np.float32) * 0.3
    soundfile.write(str(tmp_path / "a.ogg"), wave, 16_000)
    cut_audio(tmp_path / "a.ogg", tmp_path / "cut.wav", start_s=0.5)
    whole = soundfile.read(str(tmp_path / "a.ogg"), dtype="float32")[0]
    found = soundfile.read(str(tmp_path / "cut.wav"), dtype="float32")[0]
    assert np.abs(found - whole[8000:]).max() < 1e-3 and len(found) == 8000
    with pytest.raises(UsageError, match="lies outside it"):
        cut_audio(tmp_path / "a.ogg", tmp_path / "cut.wav", start_s=0.5, end_s=3.0)
