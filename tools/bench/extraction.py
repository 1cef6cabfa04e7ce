"""Batched extraction beside encoding one by one: seconds of sound a processor second.

    python tools/bench/extraction.py size=released clips=12 shortest_s=2 longest_s=6 repeats=3

Both read the same clips and give codes of both books, in turns, in one process on one thread; the
time is the processor's, which is what the work costs on a shared machine. ``size`` is ``released``
(the published sizes, random weights, 289 million parameters) or ``small`` (the walkthrough's
sizes). The peer is each whole clip by itself through the same networks, without the way of the
stream that a question takes; that one stands under ``ratios`` as ``streaming`` (where the size has
it). ``equal``: every code is the same. The last line is JSON.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from turns import ROOT, machine, told  # noqa: E402

BATCH_S = 120.0


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of a call, and what it gave."""
    begun = time.process_time()
    found = call()
    return time.process_time() - begun, found


def tokenizers(size: str) -> Any:
    """Both books with random weights, their codes where such encoders' vectors may lie."""
    import torch

    from aqaa.tokenizer.dual import DualTokenizer
    from aqaa.tokenizer.released import LinguisticTokenizer, SemanticTokenizer
    from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer

    torch.manual_seed(0)
    books: list[Any]
    if size == "released":
        books = [LinguisticTokenizer(encoder={}), SemanticTokenizer(network={})]
    else:
        phones = [f"p{i}" for i in range(40)]
        books = [
            SpeechTokenizer(
                book=book, phones=phones, codes=codes, frames_per_code=frames, ctc_steps=2
            )
            for book, codes, frames in (("linguistic", 1024, 6), ("semantic", 4096, 4))
        ]
    for book in books:
        vectors = torch.randn(book.codebook.vectors.shape)
        book.codebook.hold(torch.nn.functional.normalize(vectors, dim=-1))
    return DualTokenizer(*books)


def write_speech(folder: Path, clips: int, shortest_s: float, longest_s: float) -> Path:
    """A manifest of noise whose loudness rises and falls as speech does."""
    import numpy as np

    from aqaa.audio.file import write_audio
    from aqaa.data.manifest import write_manifest

    rng, rows = np.random.default_rng(0), []
    for i in range(clips):
        count = int(rng.uniform(shortest_s, longest_s) * 16_000)
        level = 0.2 * np.abs(np.sin(np.arange(count) * 4e-4)) + 0.01
        write_audio(folder / f"{i}.wav", level * rng.standard_normal(count), 16_000)
        rows.append({"id": f"c{i}", "kind": "audio", "audio": {"path": f"{i}.wav"}})
    write_manifest(folder / "speech.jsonl", rows)
    return folder / "speech.jsonl"


def bench(*, size: str, clips: int, shortest_s: float, longest_s: float, repeats: int) -> Any:
    """Encode in turns; returns the record."""
    import torch

    from aqaa.data.extraction import encode
    from aqaa.data.keyed_clips import source
    from aqaa.signals import CodePair
    from aqaa.tokenizer.batched import encode_alone, pieces_of

    torch.set_num_threads(1)
    dual = tokenizers(size)
    padding: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        found = source(write_speech(Path(temporary), clips, shortest_s, longest_s))
        sound_s = sum(clip.seconds for clip in found.clips)

        def batched() -> dict[str, Any]:
            codes: dict[str, Any] = {}
            padded = frames = 0
            for batch in encode(found, found.clips, dual, batch_s=BATCH_S, workers=0):
                codes |= dict(batch.codes)
                padded, frames = padded + batch.padded_frames, frames + batch.frames
            padding.append(padded / frames)
            return codes

        def alone(samples: Any) -> Any:
            codes = [[c for p in pieces_of(book, samples) for c in encode_alone(book, p)]
                     for book in (dual.linguistic, dual.semantic)]  # fmt: skip
            return CodePair(*codes)

        def each(encode_one: Callable[[Any], Any]) -> dict[str, Any]:
            return {c.key: encode_one(found.sound(c, dual.peak)) for c in found.clips}

        ways = {"ours": batched, "peer": lambda: each(alone)}
        if size == "released":
            ways["streaming"] = lambda: each(dual.encode)
        batched()  # warms up
        taken: dict[str, list[float]] = {name: [] for name in ways}
        codes: dict[str, Any] = {}
        for _ in range(repeats):
            for name, way in ways.items():
                spent, codes[name] = timed(way)
                taken[name].append(spent)
    rate = {name: sound_s / statistics.median(seconds) for name, seconds in taken.items()}
    print(f"{clips} clips, {sound_s:.1f} s of sound; batched {rate['ours']:.2f} s/s, one by one "
          f"{rate['peer']:.2f} s/s, {padding[-1]:.1%} padding")  # fmt: skip
    return {
        "bench": "extraction",
        "ours": round(rate["ours"], 2),
        "peer": round(rate["peer"], 2),
        "unit": f"s of sound a processor second, {size} size, one thread",
        "ratio": round(rate["ours"] / rate["peer"], 2),
        "ratios": {name: round(rate["ours"] / rate[name], 2) for name in ways if name != "ours"},
        "padded_share": round(padding[-1], 4),
        "equal": all(found == codes["ours"] for found in codes.values()),
        "machine": machine(),
        "versions": {"torch": version("torch")},
    }


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0 if both gave the same codes."""
    asked = {"size": "released", "clips": "12", "shortest_s": "2.0", "longest_s": "6.0",
             "repeats": "3"}  # fmt: skip
    given = told("extraction", argv, asked)
    if given["size"] not in ("released", "small"):
        print(f"extraction: size={given['size']}: it takes {', '.join(asked)}, as key=value, and "
              "size is released or small", file=sys.stderr)  # fmt: skip
        return 2
    sys.path.insert(0, str(ROOT))
    found = bench(
        size=given["size"], clips=int(given["clips"]), shortest_s=float(given["shortest_s"]),
        longest_s=float(given["longest_s"]), repeats=int(given["repeats"]),
    )  # fmt: skip
    print(json.dumps(found))
    return int(not found["equal"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
