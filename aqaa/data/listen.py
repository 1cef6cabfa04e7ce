"""Decode stored codes, the targets of a training, back to sound: `aqaa listen`."""

from collections.abc import Sequence
from pathlib import Path

from aqaa.audio.file import write_audio
from aqaa.data.token_store import TokenStore
from aqaa.errors import UsageError
from aqaa.storage import atomic_folder
from aqaa.vocoder.flow import FlowVocoder
from aqaa.vocoder.vocoder import Vocoder
from aqaa.vocoder.waveform import WaveformHead


def listen(
    *,
    source: str,
    flow: str,
    waveform: str,
    out: str,
    keys: Sequence[str] | None = None,
    count: int = 8,
) -> Path:
    """Write one WAV a clip; what cannot be heard here cannot be learned from these codes.

    Args:
        source: a token store.
        flow: folder of the vocoder's first network.
        waveform: folder of its second.
        out: folder of the WAVs, written as a whole.
        keys: clips of the store (None: the first ``count`` that have both books).
        count: how many.
    """
    store = TokenStore(source)
    vocoder = Vocoder(FlowVocoder.load(flow), WaveformHead.load(waveform))
    chosen = list(keys) if keys else [k for k in store.keys() if store[k].groups][:count]
    if not chosen:
        raise UsageError(f"{source} holds no clip with both books: question_books=both stores them")
    with atomic_folder(out) as folder:
        for key in chosen:
            sound = vocoder.speak(store[key])
            write_audio(folder / f"{key.replace('/', '-')}.wav", sound.samples, sound.rate_hz)
    return Path(out)
