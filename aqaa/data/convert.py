"""The verb: speech data of other tools into aqaa-jsonl, and back.

Every conversion makes a folder, whole or not at all. Sound is copied as it is or named by its
absolute path; it is cut, sample by sample, only where a format has no segments. What a
format cannot hold is said at the end.
"""

from collections.abc import Iterator
from pathlib import Path

from aqaa.data.formats import corpus, hf, jsonl, kaldi, kimi, lhotse, librispeech, swift, tar
from aqaa.data.formats.sounds import Format, Placed, Sounds, checked
from aqaa.errors import UsageError
from aqaa.storage import atomic_folder

FORMATS = {
    "aqaa": Format(jsonl.read, jsonl.write),
    "swift": Format(swift.read, swift.write_swift),
    "llamafactory": Format(swift.read, swift.write_llamafactory),
    "kimi": Format(kimi.read, kimi.write),
    "kaldi": Format(kaldi.read, kaldi.write),
    "hf": Format(hf.read, hf.write, embeds=True),
    "lhotse": Format(lhotse.read, lhotse.write),
    "tar": Format(tar.read, tar.write, embeds=True),
    "librispeech": Format(librispeech.read, None),
    "corpus": Format(None, corpus.write),
    "dialogues": Format(None, corpus.write_whole),
}


def convert(*, source: str, out: str, reads: str = "aqaa", writes: str = "aqaa") -> Path:
    """Convert speech data.

    Args:
        source: file or folder of the format that is read.
        out: folder, written as a whole.
        reads: name of the format of ``source``.
        writes: name of the format of ``out``.

    Returns:
        ``out``.

    Raises:
        UsageError: no such format; bad input, by file and line; a sound file that is missing.
    """
    read, write = _format(reads).read, _format(writes).write
    if read is None or write is None:
        side = f"read {reads}" if read is None else f"write {writes}"
        raise UsageError(f"aqaa cannot {side}")
    path = Path(source)
    if not path.exists():
        raise UsageError(f"{source} does not exist")
    name = path.name.split(".")[0] if path.is_file() else "data"
    with atomic_folder(out) as folder:
        sounds = Sounds(folder, Path(out).resolve())
        write(_some(read(path, sounds)), name, sounds)
        if FORMATS[writes].embeds:
            sounds.clear()
    for what, rows in sorted(sounds.lost.items()):
        print(f"convert: {what} ({rows} rows)")
    return Path(out)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise UsageError(f"there is no format {name}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def _some(rows: Iterator[Placed]) -> Iterator[Placed]:
    """Rows that are right by the rules of aqaa-jsonl; at least one."""
    empty = True
    for placed in rows:
        empty = False
        yield checked(placed)
    if empty:
        raise UsageError("there is no row to convert")
