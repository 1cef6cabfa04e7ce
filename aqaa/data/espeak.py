"""The espeak-ng synthesiser through ctypes: text to sound, text to phones.

The library keeps state between utterances that colours the next one by a hair, so the same
sequence of calls in a fresh process gives the same samples, another order does not.
"""

import ctypes
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from aqaa.audio.file import PEAK, SILENT_PEAK, trim
from aqaa.errors import UsageError
from aqaa.signals import QUESTION_RATE_HZ

PHONE_VOICE = "en-us"
_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples come through the callback
_DO_NOT_EXIT = 0x8000  # report broken data instead of ending the process
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_UTF8 = 1
_SEPARATED_BY_UNDERSCORE = ord("_") << 8
_STRESS_MARKS = str.maketrans("", "", ",'%=")
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Espeak:
    """One synthesiser; the library behind it is one per process, so make one and keep it."""

    def __init__(self) -> None:
        library, self._data = _installed()
        self._library = ctypes.CDLL(library)
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        data = str(self._data).encode()
        self._rate_hz = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DO_NOT_EXIT)
        if self._rate_hz <= 0:
            raise UsageError(
                f"espeak-ng cannot use its data in {self._data} (code {self._rate_hz}): "
                "reinstall espeakng-loader"
            )
        _seed(self._library)
        self._blocks: list[NDArray[np.int16]] = []
        self._callback = _CALLBACK(self._take)  # kept: ctypes holds no reference of its own
        self._library.espeak_SetSynthCallback(self._callback)
        self._voice = ""

    def _take(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int) -> int:
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def _use(self, voice: str) -> None:
        if voice == self._voice:
            return
        _, _, variant = voice.partition("+")
        # An unknown variant is not an error to the library: it speaks in the plain voice.
        known = not variant or (self._data / "voices" / "!v" / variant).is_file()
        if not known or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            self._voice = ""
            raise UsageError(f"espeak-ng has no voice {voice!r} in {self._data}; choose another")
        self._voice = voice

    def say(self, text: str, *, voice: str, rate_wpm: int, pitch: int) -> NDArray[np.float32]:
        """Speak ``text``: float32 (T,) at 16 kHz, silence trimmed, peak 0.5.

        Args:
            text: what to say.
            voice: an espeak voice, with a variant after a plus sign if wanted (``en-us+f2``).
            rate_wpm: words a minute, 80..450.
            pitch: 0..99, 50 is the voice's own.
        """
        self._use(voice)
        self._library.espeak_SetParameter(_RATE, int(rate_wpm), 0)
        self._library.espeak_SetParameter(_PITCH, int(pitch), 0)
        self._blocks.clear()
        raw = text.encode() + b"\0"
        code = self._library.espeak_Synth(raw, len(raw), 0, 0, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        if code != 0 or not self._blocks:
            raise UsageError(f"espeak-ng said nothing for {text!r} (code {code})")
        spoken = np.concatenate(self._blocks).astype(np.float32) / 32768
        samples = soxr.resample(spoken, self._rate_hz, QUESTION_RATE_HZ)
        samples = trim(samples.astype(np.float32, copy=False), QUESTION_RATE_HZ)
        peak = float(np.abs(samples).max(initial=0.0))
        if peak < SILENT_PEAK:
            raise UsageError(f"espeak-ng made no sound of {text!r} in the voice {voice!r}")
        return samples * np.float32(PEAK / peak)

    def phonemes(self, text: str) -> list[str]:
        """American English phones of ``text`` without stress marks."""
        self._use(PHONE_VOICE)
        rest = ctypes.c_char_p(text.encode())
        pointer = ctypes.pointer(ctypes.cast(rest, ctypes.c_void_p))
        phones: list[str] = []
        while pointer.contents.value:  # a clause per call; the library moves the pointer on
            clause = self._library.espeak_TextToPhonemes(pointer, _UTF8, _SEPARATED_BY_UNDERSCORE)
            marked = clause.decode().replace("_", " ").split()
            phones += [phone for mark in marked if (phone := mark.translate(_STRESS_MARKS))]
        return phones


def version() -> str:
    """The synthesiser's version, which decides its sound; '' where it is not installed."""
    try:
        path, _ = _installed()
    except UsageError:
        return ""
    library = ctypes.CDLL(path)
    library.espeak_Info.restype = ctypes.c_char_p
    found: bytes = library.espeak_Info(None)
    return found.decode()


def _seed(library: ctypes.CDLL) -> None:
    """Fix the generator of breath noise, which starts from the clock otherwise."""
    ctypes.CDLL(None).srand(1)  # the C library's, which older versions draw from
    if hasattr(library, "espeak_ng_SetRandSeed"):
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))


def _installed() -> tuple[str, Path]:
    """Paths of the shared library and of its data."""
    try:
        import espeakng_loader
    except ImportError:
        raise UsageError(
            "the espeak-ng synthesiser is not installed: pip install aqaa[demo]"
        ) from None
    return str(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())
