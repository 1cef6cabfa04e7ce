"""Many utterances into few sound files, by several processes, with the same bytes for any number.

Each shard is spoken by a process of its own, because the synthesiser carries state from one
utterance to the next: only then does a shard not depend on what was said before it.
"""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from aqaa.audio.file import pad_to_groups, write_audio
from aqaa.data.espeak import Espeak
from aqaa.errors import UsageError
from aqaa.signals import QUESTION_RATE_HZ

SHARD_CLIPS = 500
_POLL_S = 0.2


@dataclass(frozen=True)
class Utterance:
    """What to say and how."""

    text: str
    voice: str
    rate_wpm: int
    pitch: int


@dataclass(frozen=True)
class Clip:
    """Where an utterance lies, ``path`` relative to the corpus, in whole groups; its phones."""

    path: str
    start_samples: int
    end_samples: int
    phones: tuple[str, ...]

    def part(self) -> dict[str, Any]:
        """The manifest's fields for this clip, times in seconds."""
        return {
            "path": self.path,
            "start": round(self.start_samples / QUESTION_RATE_HZ, 6),
            "end": round(self.end_samples / QUESTION_RATE_HZ, 6),
            "phones": list(self.phones),
        }


@dataclass(frozen=True)
class _Shard:
    path: str
    places: tuple[int, ...]  # of its utterances in the caller's list


def speak(
    lists: dict[str, Sequence[Utterance]],
    *,
    folder: Path,
    workers: int,
    spoken: Callable[[int], None],
) -> dict[str, list[Clip]]:
    """Speak every utterance into ``folder``/audio.

    Args:
        lists: utterances by name; the name begins the file names of its shards.
        folder: the corpus.
        workers: processes at a time.
        spoken: called now and then with the number of clips made so far.

    Returns:
        For each name one clip per utterance, in the order given.
    """
    shards = [(name, shard) for name, items in lists.items() for shard in _cut(name, items)]
    context = multiprocessing.get_context("fork")
    done = context.Value("q", 0)
    running: dict[Any, tuple[BaseProcess, str, _Shard]] = {}
    clips: dict[str, dict[int, Clip]] = {name: {} for name in lists}
    waiting = iter(shards)
    try:
        while True:
            while len(running) < max(1, workers) and (job := next(waiting, None)):
                name, shard = job
                ours, theirs = context.Pipe(duplex=False)
                items = [lists[name][place] for place in shard.places]
                given = (shard.path, items, folder, done, theirs)
                child = context.Process(target=_work, args=given, daemon=True)
                child.start()
                theirs.close()
                running[ours] = (child, name, shard)
            if not running:
                break
            for ready in wait(list(running), timeout=_POLL_S):
                process, name, shard = running.pop(ready)
                made = _receive(ready, process)
                clips[name].update(zip(shard.places, made, strict=True))
            spoken(done.value)
    finally:
        for process, _, _ in running.values():
            process.terminate()
            process.join()
    return {name: [made[place] for place in sorted(made)] for name, made in clips.items()}


def _cut(name: str, items: Sequence[Utterance]) -> list[_Shard]:
    """Shards of up to 500 utterances, sorted by voice so that a shard switches seldom."""
    order = sorted(range(len(items)), key=lambda place: (items[place].voice, place))
    return [
        _Shard(
            f"audio/{name}_{start // SHARD_CLIPS:03d}.wav",
            tuple(order[start : start + SHARD_CLIPS]),
        )
        for start in range(0, len(order), SHARD_CLIPS)
    ]


def _receive(connection: Any, process: BaseProcess) -> list[Clip]:
    try:
        answer = connection.recv()
    except EOFError:
        process.join()
        raise UsageError(
            f"a synthesis process ended with code {process.exitcode} before its work was done; "
            "is there memory left? Run the command again"
        ) from None
    process.join()
    if isinstance(answer, str):
        raise UsageError(answer)
    made: list[Clip] = answer
    return made


def _work(path: str, items: list[Utterance], folder: Path, done: Any, reply: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C and ends its children
    try:
        reply.send(_speak_shard(path, items, folder, done))
    except UsageError as error:
        reply.send(str(error))


def _speak_shard(path: str, items: list[Utterance], folder: Path, done: Any) -> list[Clip]:
    espeak = Espeak()
    sounds = []
    for item in items:
        sound = espeak.say(item.text, voice=item.voice, rate_wpm=item.rate_wpm, pitch=item.pitch)
        sounds.append(pad_to_groups(sound))
        with done.get_lock():
            done.value += 1
    phones = {text: tuple(espeak.phonemes(text)) for text in {item.text for item in items}}
    ends = np.cumsum([len(sound) for sound in sounds]).tolist()
    write_audio(folder / path, np.concatenate(sounds), QUESTION_RATE_HZ)
    return [
        Clip(path, end - len(sound), end, phones[item.text])
        for item, sound, end in zip(items, sounds, ends, strict=True)
    ]
