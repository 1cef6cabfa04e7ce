"""Human recordings, and synthetic speech beside them, as one folder of manifests to train on.

    python tools/human_speech.py RECORDINGS runs/human
    python tools/human_speech.py RECORDINGS runs/human --corpus runs/corpus --rows 4000

``RECORDINGS`` holds ``barista/`` and ``digits/``, which recipes/data.md describes. A digit's name
says the digit, who says it and the take: takes 0 to 4 are for the test, as that set's own split has
it, and 5 to 7 for validation. An order has neither words nor speaker: every tenth is for the test,
every twentieth for validation. ``--corpus`` adds questions and answers of a synthesised corpus to
the training part alone. Sounds are copied as they are.
"""

import argparse
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aqaa.data.corpus import Corpus, question_part
from aqaa.data.manifest import read_manifest, write_manifest
from aqaa.errors import UsageError
from aqaa.storage import atomic_folder

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = ("train", "validation", "test")
Row = tuple[str, dict[str, Any], Path]  # its split, itself, the sound that its path stands for


def main(words: list[str] | None = None) -> int:
    """Write the folder; 2 where the recordings are not what they should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recordings", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", type=Path, help="of `aqaa data synthesize`")
    parser.add_argument("--rows", type=int, default=4000, help="of its questions, drawn by chance")
    options = parser.parse_args(words)
    try:
        rows = [*digits(options.recordings / "digits"), *orders(options.recordings / "barista")]
        if options.corpus is not None:
            rows += synthetic(options.corpus, options.rows)
        write(rows, options.out)
    except UsageError as error:
        print(f"human_speech: {error}", file=sys.stderr)
        return 2
    counts = {split: sum(row[0] == split for row in rows) for split in SPLITS}
    print(f"{options.out}: " + ", ".join(f"{n} clips for {split}" for split, n in counts.items()))
    return 0


def digits(folder: Path) -> Iterator[Row]:
    """Spoken digits: ``{digit}_{speaker}_{take}.wav``.

    Raises:
        UsageError: there is none, or a file has another name.
    """
    for path in _sounds(folder, "wav"):
        try:
            digit, speaker, take = path.stem.split("_")
            word, number = DIGITS[int(digit)], int(take)
        except (ValueError, IndexError):
            raise UsageError(f"{path} is not named as digit_speaker_take.wav") from None
        split = "test" if number < 5 else "validation" if number < 8 else "train"
        yield split, _row(f"digits-{path.stem}", f"digits/{path.name}", word, speaker), path


def orders(folder: Path) -> Iterator[Row]:
    """Spoken orders, as its ``manifest.jsonl`` lists them: nobody wrote down the words.

    Raises:
        UsageError: there is no such list, or it names a sound that is not there.
    """
    for place, listed in enumerate(read_manifest(folder / "manifest.jsonl")):
        path = folder / str(listed.get("audio"))
        if not path.is_file():
            raise UsageError(f"{folder}/manifest.jsonl names {path.name}, which is not there")
        split = "test" if place % 10 == 0 else "validation" if place % 20 == 5 else "train"
        yield split, _row(f"barista-{path.stem}", f"barista/{path.name}"), path


def synthetic(folder: Path, rows: int) -> Iterator[Row]:
    """``rows`` training questions of a synthesised corpus, and all of its answers."""
    corpus = Corpus(folder)
    questions = corpus.rows("train")
    for place in random.Random(0).sample(range(len(questions)), min(rows, len(questions))):
        row = questions[place]
        yield _part("question-" + row["id"], question_part(row), row["meta"]["voice"], folder)
    for name, row in corpus.answers.items():
        yield _part(name, row["audio"] | {"text": row["text"]}, row["speaker"], folder)


def _part(name: str, part: dict[str, Any], speaker: str, folder: Path) -> Row:
    """A stretch of a longer file."""
    row = _row(name, f"synthetic/{Path(part['path']).name}", part["text"], speaker)
    row["audio"] |= {"start": part["start"], "end": part["end"]}
    return "train", row, folder / part["path"]


def _row(name: str, path: str, text: str = "", speaker: str = "") -> dict[str, Any]:
    known = {"text": text, "speaker": speaker}
    row = {"id": name, "kind": "asr" if text else "audio", "audio": {"path": path}}
    return row | {key: value for key, value in known.items() if value}


def _sounds(folder: Path, ending: str) -> list[Path]:
    if found := sorted(folder.glob(f"*.{ending}")):
        return found
    raise UsageError(f"{folder} holds no .{ending} file: recipes/data.md says what belongs there")


def write(rows: list[Row], out: Path) -> None:
    """Sounds and manifests, whole or not at all."""
    with atomic_folder(out) as made:
        sounds = {row["audio"]["path"]: path for _, row, path in rows}
        for name, path in sounds.items():
            (made / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, made / name)
        for split in SPLITS:
            write_manifest(made / f"{split}.jsonl", (row for s, row, _ in rows if s == split))


if __name__ == "__main__":
    sys.exit(main())
