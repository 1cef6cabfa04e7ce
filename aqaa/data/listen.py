"""Decode stored codes, the targets of a training, back to sound: `aqaa listen`."""

from collections.abc import Sequence
from pathlib import Path

from aqaa.audio.file import write_audio
from aqaa.data.token_store import TokenStore
from aqaa.errors import UsageError
from aqaa.storage import atomic_folder
from aqaa.vocoder.voice import load_voice, tune

_BOTH = "tokenize with question_books=both to hear questions too"


def listen(
    *,
    source: str,
    flow: str,
    waveform: str,
    out: str,
    keys: Sequence[str] | str | None = None,
    count: int = 8,
    steps: int | None = None,
    guidance: float | None = None,
    solver: str | None = None,
) -> Path:
    """Write one WAV a clip; what cannot be heard here cannot be learned from these codes.

    Args:
        source: a token store.
        flow: folder of the vocoder's first network.
        waveform: folder of its second.
        out: folder of the WAVs, written as a whole.
        keys: clips of the store, one or several (None: the first ``count`` with both books).
        count: how many.
        steps: calls of the flow (None, here and below: as its kind is made to be).
        guidance: of the flow.
        solver: of the flow.
    """
    store = TokenStore(source)
    vocoder = load_voice(flow, waveform)
    tune(vocoder, steps=steps, guidance=guidance, solver=solver)
    chosen = _chosen(store, keys, count)
    with atomic_folder(out) as folder:
        for key in chosen:
            sound = vocoder.speak(store[key])
            write_audio(folder / f"{key.replace('/', '-')}.wav", sound.samples, sound.rate_hz)
    return Path(out)


def _chosen(store: TokenStore, keys: Sequence[str] | str | None, count: int) -> list[str]:
    """Keys of clips that both books cover."""
    if keys is None:
        if count < 1:
            raise UsageError(f"count={count}: at least one clip is needed")
        chosen = [key for key in store.keys() if store[key].groups][:count]
        if not chosen:
            raise UsageError(f"{store.folder} holds no clip with both books: {_BOTH}")
        return chosen
    chosen = [keys] if isinstance(keys, str) else list(keys)
    if not chosen:
        raise UsageError("keys=[]: name at least one clip")
    if bare := [key for key in chosen if not store[key].groups]:
        raise UsageError(f"{store.folder} lacks a book of {bare[0]}: {_BOTH}")
    return chosen
