"""How long and how high something was said: the measures behind voice control.

Letters: T samples, N windows of 10 ms.
"""

from dataclasses import dataclass

import numpy as np

from aqaa.errors import UsageError

WINDOW_S = 0.01
QUIET = 0.05  # of the loudest window: below it a clip's head and tail count as silence
F0_FLOOR_HZ, F0_CEILING_HZ = 50.0, 500.0


@dataclass(frozen=True)
class Prosody:
    """Length of the spoken part and median pitch; None where nothing was said or voiced."""

    duration_s: float | None
    f0_hz: float | None


def spoken_duration_s(samples: np.ndarray, rate_hz: int) -> float | None:
    """Seconds from the first to the last window that is not quiet in (T,); None for silence.

    Padding to whole token groups would otherwise pull every ratio towards one.
    """
    window = round(WINDOW_S * rate_hz)
    whole = np.asarray(samples, np.float64)[: len(samples) // window * window].reshape(-1, window)
    loudness = np.sqrt((whole**2).mean(axis=1))  # (N,)
    if not len(loudness) or loudness.max() < 1e-4:
        return None
    loud = np.flatnonzero(loudness > QUIET * loudness.max())
    return float((loud[-1] - loud[0] + 1) * window / rate_hz)


def median_f0_hz(samples: np.ndarray, rate_hz: int) -> float | None:
    """Median pitch over the voiced frames of (T,), by Praat; None when nothing is voiced.

    Raises:
        UsageError: praat-parselmouth is not installed.
    """
    try:
        from parselmouth import Sound
    except ImportError:
        raise UsageError(
            "measuring pitch needs praat-parselmouth, which is missing: pip install aqaa[demo]"
        ) from None
    if len(samples) < 4 * rate_hz / F0_FLOOR_HZ:
        return None  # shorter than Praat's analysis window
    sound = Sound(np.asarray(samples, np.float64), sampling_frequency=rate_hz)
    pitch = sound.to_pitch(time_step=WINDOW_S, pitch_floor=F0_FLOOR_HZ, pitch_ceiling=F0_CEILING_HZ)
    track = pitch.selected_array["frequency"]  # (N,), 0 where unvoiced
    voiced = track[track > 0]
    return float(np.median(voiced)) if len(voiced) else None


def prosody(samples: np.ndarray, rate_hz: int) -> Prosody:
    """Both measures of (T,)."""
    return Prosody(spoken_duration_s(samples, rate_hz), median_f0_hz(samples, rate_hz))
