"""How near a sound comes back after tokenizer and vocoder, or after the waveform head alone.

Letters: T samples, F mel frames.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aqaa.audio.file import at_rate
from aqaa.audio.pitch import pitch
from aqaa.audio.vocoder_mel import vocoder_mel
from aqaa.signals import QUESTION_RATE_HZ, VOCODER_HOP_SAMPLES, VOCODER_RATE_HZ, Waveform

# Of each measure: its unit or range, and whether more is better.
MEASURES = {
    "mel_distance": "mean absolute difference of log-mels (natural logarithm), less is better",
    "f0_correlation": "of frames voiced in both, more is better",
    "f0_rmse_hz": "of frames voiced in both, less is better",
    "voicing_error": "share of frames voiced in one alone, less is better",
    "stoi": "short-time intelligibility 0..1, more is better",
    "pesq": "wide band, -0.5..4.5, more is better",
}
_LEAST_VOICED = 5  # frames; a correlation of fewer says nothing


def measures(original: Waveform, made: Waveform) -> dict[str, float | None]:
    """Distances of a sound made from the original, cut to the shorter and at its level.

    What cannot be measured is None: no voiced frames, or a package that is not installed.
    """
    a, b = (torch.from_numpy(at_rate(w, VOCODER_RATE_HZ).samples).float() for w in (original, made))
    size = min(len(a), len(b))
    a, b = a[:size], b[:size]
    b = b * (a.norm() / b.norm().clamp(min=1e-9))
    found: dict[str, float | None] = {"mel_distance": _mel_distance(a, b), **_pitches(a, b)}
    low = [at_rate(Waveform(x.numpy(), VOCODER_RATE_HZ), QUESTION_RATE_HZ).samples for x in (a, b)]
    return found | {"stoi": _stoi(*low), "pesq": _pesq(*low)}


def _mel_distance(a: Tensor, b: Tensor) -> float:
    mels = vocoder_mel(torch.stack([a, b]))
    return float((mels[0] - mels[1]).abs().mean())


def _pitches(a: Tensor, b: Tensor) -> dict[str, float | None]:
    """What the pitches of two sounds (T,) say."""
    one, two = (
        pitch(x, rate_hz=VOCODER_RATE_HZ, hop_samples=VOCODER_HOP_SAMPLES).double() for x in (a, b)
    )
    both = (one > 0) & (two > 0)
    error = float(((one > 0) ^ (two > 0)).double().mean())
    found: dict[str, float | None] = {"voicing_error": error}
    if int(both.sum()) < _LEAST_VOICED:
        return found | {"f0_correlation": None, "f0_rmse_hz": None}
    one, two = one[both], two[both]
    flat = bool(one.std() < 1e-6 or two.std() < 1e-6)
    together = None if flat else float(torch.corrcoef(torch.stack([one, two]))[0, 1])
    return found | {
        "f0_correlation": together,
        "f0_rmse_hz": float((one - two).pow(2).mean().sqrt()),
    }


def _stoi(a: np.ndarray, b: np.ndarray) -> float | None:
    try:
        from pystoi import stoi
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(stoi(a, b, QUESTION_RATE_HZ))
        except RuntimeWarning:  # too few frames: its number would mean nothing
            return None


def _pesq(a: np.ndarray, b: np.ndarray) -> float | None:
    try:
        from pesq import PesqError, pesq
    except ImportError:
        return None
    try:
        return float(pesq(QUESTION_RATE_HZ, a, b, "wb"))
    except PesqError:  # it hears no utterance
        return None


def summary(rows: Sequence[dict[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Mean of each measure, and of how many clips."""
    out: dict[str, dict[str, Any]] = {}
    for name in MEASURES:
        values = [value for row in rows if (value := row.get(name)) is not None]
        mean = sum(values) / len(values) if values else None
        out[name] = {"value": mean, "n": len(values)}
    return out


def recognised(
    sounds: Iterable[tuple[str, Waveform]], recogniser: Callable[[np.ndarray], str]
) -> tuple[int, int]:
    """Of sounds with what they say: how many are heard as that, and how many there are."""
    hits = [recogniser(at_rate(sound).samples) == text for text, sound in sounds]
    return sum(hits), len(hits)
