"""Sound files in and out: any rate and channel count in, mono float32 out; errors name the file.

Letters: T samples, C channels.
"""

import math
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from aqaa.errors import UsageError
from aqaa.signals import GROUP_S, GROUP_SAMPLES, QUESTION_RATE_HZ, Waveform
from aqaa.storage import atomic_path

PEAK = 0.5  # of every clip the chain hears or is trained on
SILENT_PEAK = 1e-3
LONGEST_S = 1800.0  # of sound read at once: hours of it would fill the memory
_FAINTEST_PEAK = 0.01  # what is fainter is brought up as if it were this loud
_TRIM_SHARE = 0.02  # of the peak: what is quieter at either end is silence
_LEAD_S, _TAIL_S = 0.03, 0.05  # of silence kept, so that soft onsets and endings survive
_WHOLE_NUMBERS = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")
_RIFF_SIZE_UNKNOWN = 0x7FFFF000  # writers to a pipe leave this or more in the header


def read_audio(
    path: str | Path,
    *,
    rate_hz: int = QUESTION_RATE_HZ,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Waveform:
    """Read a stretch of a sound file as mono float32 (T,) at ``rate_hz``.

    Channels are averaged, other rates resampled, clipped sound is taken as it is; WAV, FLAC, OGG
    and whatever libsndfile knows. A file may be of any length, a stretch of it :data:`LONGEST_S`.

    Raises:
        UsageError: missing, empty, cut short, not audio, a stretch outside the file or longer than
            half an hour, NaN or Inf.
    """
    path = Path(path)
    _check_file(path)
    samples, own_rate_hz = _read_stretch(path, start_s, end_s, longest_s=LONGEST_S)
    if not len(samples):
        raise UsageError(f"{path} holds no sound: 0 samples; give a file with speech in it")
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise UsageError(f"{path} holds {bad} NaN or infinite samples; write it again")
    return at_rate(Waveform(samples.mean(axis=1, dtype=np.float32), own_rate_hz), rate_hz)


def at_rate(waveform: Waveform, rate_hz: int = QUESTION_RATE_HZ) -> Waveform:
    """The same sound at another rate; itself where that is its own."""
    if waveform.rate_hz == rate_hz:
        return waveform
    samples = soxr.resample(waveform.samples, waveform.rate_hz, rate_hz)
    return Waveform(samples.astype(np.float32, copy=False), rate_hz)


def file_rate_hz(path: str | Path) -> int:
    """The rate a sound file is stored at; UsageError where it cannot be opened."""
    return int(_info(path).samplerate)


def file_duration_s(path: str | Path) -> float:
    """How long a sound file lasts by its header; UsageError where it cannot be opened."""
    return float(_info(path).duration)


def _info(path: str | Path) -> Any:
    _check_file(Path(path))
    try:
        return soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        raise UsageError(f"{path} is not a readable sound file: {error.error_string}") from None


def _check_file(path: Path) -> None:
    """Refuse what is no complete file before a decoder guesses at it."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a sound file")
    if not path.is_file():
        raise UsageError(f"{path} does not exist: give a sound file")
    size_bytes = os.path.getsize(path)
    if not size_bytes:
        raise UsageError(f"{path} is an empty file (0 bytes); write it again")
    with open(path, "rb") as handle:
        head = handle.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        # libsndfile reads a cut WAV without a word, so the header's promise is checked here.
        promised_bytes = int.from_bytes(head[4:8], "little") + 8
        if size_bytes + 1 < promised_bytes < _RIFF_SIZE_UNKNOWN:
            raise UsageError(
                f"{path} is cut short: its header promises {promised_bytes} bytes, "
                f"the file has {size_bytes}; copy it again"
            )


def _read_stretch(
    path: Path,
    start_s: float,
    end_s: float | None,
    dtype: str = "float32",
    longest_s: float = math.inf,
) -> tuple[NDArray[Any], int]:
    """Samples (T, C) of the stretch and the file's own rate."""
    try:
        with soundfile.SoundFile(str(path)) as sound:
            rate_hz, total = sound.samplerate, sound.frames
            start = round(start_s * rate_hz)
            end = total if end_s is None else round(end_s * rate_hz)
            if not 0 <= start <= end <= total:
                raise UsageError(
                    f"{path} lasts {total / rate_hz:.3f} s: "
                    f"the stretch {start_s:g}..{end_s} s lies outside it"
                )
            if end - start > longest_s * rate_hz:
                raise UsageError(
                    f"{path} would be {(end - start) / rate_hz:.0f} s of sound at once, at most "
                    f"{longest_s:.0f} s are read: cut it, or name stretches by start and end"
                )
            sound.seek(start)
            samples = sound.read(end - start, dtype=dtype, always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UsageError(f"{path} is not a readable sound file: {error.error_string}") from None
    if len(samples) < end - start:
        raise UsageError(
            f"{path} is cut short: {len(samples)} of {end - start} samples can be read; "
            "copy it again"
        )
    return samples, rate_hz


def cut_audio(
    path: str | Path, out: str | Path, *, start_s: float = 0.0, end_s: float | None = None
) -> None:
    """Write a stretch of a sound file as a WAV of the same rate, channels and samples.

    Whole-number samples stay bit for bit what they were; what was stored lossy becomes floats.

    Raises:
        UsageError: as :func:`read_audio`.
    """
    path, out = Path(path), Path(out)
    _check_file(path)
    subtype = _info(path).subtype
    kept = subtype if subtype in _WHOLE_NUMBERS else "FLOAT"
    dtype = "int32" if subtype in _WHOLE_NUMBERS else "float32"
    samples, rate_hz = _read_stretch(path, start_s, end_s, dtype)
    with atomic_path(out) as temporary:
        soundfile.write(str(temporary), samples, rate_hz, subtype=kept, format="WAV")


def trim(samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """Cut silence off both ends of (T,), keeping 30 ms before and 50 ms after the sound."""
    loudness = np.abs(samples)
    loud = np.flatnonzero(loudness > _TRIM_SHARE * loudness.max(initial=0.0))
    if not len(loud):
        return samples
    start = max(0, int(loud[0]) - round(_LEAD_S * rate_hz))
    return samples[start : int(loud[-1]) + 1 + round(_TAIL_S * rate_hz)]


def levelled(samples: NDArray[np.float32], peak: float) -> NDArray[np.float32]:
    """(T,) at a peak of ``peak``; what is nearly silent is not blown up by more than 100 times."""
    loudest = max(float(np.abs(samples).max(initial=0.0)), _FAINTEST_PEAK)
    return samples * np.float32(peak / loudest)


def pad_to_groups(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zeros after (T,) at 16 kHz up to whole 120 ms groups of 1,920 samples."""
    return np.pad(samples, (0, -len(samples) % GROUP_SAMPLES))


def prepare(waveform: Waveform, *, peak: float = PEAK) -> Waveform:
    """Bring a question to the shape of the training clips: trimmed, whole groups, a level.

    Args:
        waveform: at 16 kHz.
        peak: the level its tokenizers were trained at.

    Raises:
        UsageError: another rate than 16 kHz, shorter than one group, silent, NaN or Inf.
    """
    samples = np.asarray(waveform.samples, dtype=np.float32)
    if waveform.rate_hz != QUESTION_RATE_HZ:
        raise UsageError(
            f"sound at {waveform.rate_hz} Hz must be resampled to {QUESTION_RATE_HZ} Hz first"
        )
    if len(samples) < GROUP_SAMPLES:
        raise UsageError(
            f"the sound lasts {waveform.duration_s:.3f} s; "
            f"at least {float(GROUP_S):g} s of speech are needed"
        )
    loudest = float(np.abs(samples).max())
    if not np.isfinite(loudest):
        raise UsageError("the sound holds NaN or infinite samples; record it again")
    if loudest < SILENT_PEAK:
        raise UsageError(
            f"the sound is silent: its peak is {loudest:.1e}, below {SILENT_PEAK:g}; "
            "record it again"
        )
    trimmed = trim(samples, waveform.rate_hz)
    return Waveform(pad_to_groups(trimmed * np.float32(peak / loudest)), waveform.rate_hz)


def write_audio(path: str | Path, samples: NDArray[np.float32], rate_hz: int) -> None:
    """Write mono (T,) in -1..1 as a 16-bit PCM WAV, whole or not at all; louder is clipped."""
    sound = BytesIO()  # libsndfile's own errors do not say what the disk said
    clipped = np.clip(np.asarray(samples, dtype=np.float32), -1.0, 1.0)
    soundfile.write(sound, clipped, rate_hz, subtype="PCM_16", format="WAV")
    with atomic_path(path) as temporary:
        temporary.write_bytes(sound.getbuffer())
