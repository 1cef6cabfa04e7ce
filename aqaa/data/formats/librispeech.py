"""A folder laid out like LibriSpeech: ``*.trans.txt`` files, the sound of each line beside them."""

from collections.abc import Iterator
from pathlib import Path

from aqaa.data.formats.sounds import Names, Placed, Sounds, lines_of
from aqaa.errors import UsageError

SUFFIXES = (".flac", ".wav", ".ogg", ".mp3")


def read(path: Path, sounds: Sounds) -> Iterator[Placed]:
    """One asr row for each line ``NAME WORDS``; the speaker is the name up to its first ``-``."""
    names = Names()
    transcripts = sorted(path.rglob("*.trans.txt"))
    if not transcripts:
        raise UsageError(f"{path} holds no *.trans.txt: it is not laid out like LibriSpeech")
    for transcript in transcripts:
        for place, line in lines_of(transcript):
            given, _, words = line.partition(" ")
            files = [transcript.with_name(given + suffix) for suffix in SUFFIXES]
            sound = next((file for file in files if file.is_file()), None)
            if sound is None or not words.strip():
                what = "sound file beside it" if sound is None else "words"
                raise UsageError(f"{place}: {given} has no {what}")
            name, meta = names(given, place)
            row = {
                "id": name,
                "kind": "asr",
                "text": words.strip(),
                "audio": {"path": str(sound.absolute())},
                "speaker": given.partition("-")[0],
            }
            yield Placed(place, {**row, "meta": meta} if meta else row)
