"""Human (or any) speech through tokenizer and vocoder and back, measured against itself.

    python tools/resynthesis.py recordings --waveform runs/vocoder_waveform/model
    python tools/resynthesis.py recordings --waveform W --flow F --tokenizer runs/tokens/tokenizer

``recordings`` is a folder of sound files, or of manifests (aqaa-jsonl); of these the test is heard,
where there is one, or what ``--keys`` begins with (``test/digits``). A closed-list recogniser
listens for the texts that are known, in the originals too. Two columns: ``head``, the waveform head
on the true mel; ``codes``, the whole way, where flow and tokenizer are given. Every clip is trimmed
and brought to the tokenizer's level first. The last line is the same as JSON.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from aqaa.audio.file import PEAK, at_rate, prepare, read_audio, write_audio
from aqaa.audio.mel import log_mel
from aqaa.audio.vocoder_mel import vocoder_mel
from aqaa.data.clips import TEST, Spoken, spoken
from aqaa.data.manifest import clip
from aqaa.errors import UsageError
from aqaa.evaluation.measure import figure
from aqaa.evaluation.recognise import Recogniser
from aqaa.evaluation.resynthesis import MEASURES, measures, recognised, summary
from aqaa.progress import track
from aqaa.signals import VOCODER_RATE_HZ, Waveform
from aqaa.storage import organ_of
from aqaa.tokenizer.dual import DualTokenizer
from aqaa.vocoder.hift import Hift
from aqaa.vocoder.voice import load_voice
from aqaa.vocoder.waveform import HOP_SAMPLES, WaveformHead

KINDS = {".wav", ".flac", ".ogg", ".mp3"}
Way = Callable[[Waveform], Waveform]


def main(words: list[str] | None = None) -> int:
    """Measure and print; 2 where nothing could be measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--waveform", type=Path, required=True)
    parser.add_argument("--flow", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--rows", type=_positive, default=200, help="clips, drawn by chance")
    parser.add_argument("--keys", help="only clips of manifests whose MANIFEST/ID begins so")
    parser.add_argument("--out", type=Path, help="folder that gets the sounds")
    options = parser.parse_args(words)
    if (options.flow is None) != (options.tokenizer is None):
        parser.error("--flow and --tokenizer go together: give both, or neither")
    try:
        ways, peak = load(options)
        given = list(clips(options.folder, options.rows, options.keys))
        found = measure(given, ways, peak, options.out)
    except UsageError as error:
        print(f"resynthesis: {error}", file=sys.stderr)
        return 2
    show(found)
    return 0


def _positive(word: str) -> int:
    if (number := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{number} clips cannot be measured: say 1 or more")
    return number


def load(options: argparse.Namespace) -> tuple[dict[str, Way], float]:
    """The ways a sound can go, by name, and the level it starts at."""
    ways: dict[str, Way] = {"head": of_head(options.waveform)}
    if options.flow is None:
        return ways, PEAK
    tokenizer = DualTokenizer.load(options.tokenizer)
    voice = load_voice(options.flow, options.waveform)
    ways["codes"] = lambda sound: voice.speak(tokenizer.encode(torch.from_numpy(sound.samples)))
    return ways, tokenizer.peak


def of_head(folder: Path) -> Way:
    """From a sound to its mel and back."""
    kind: Any = Hift if organ_of(folder) == Hift.__name__ else WaveformHead
    head = kind.load(folder)
    small = head.hop_samples == HOP_SAMPLES

    @torch.inference_mode()
    def way(sound: Waveform) -> Waveform:
        there = sound if small else at_rate(sound, VOCODER_RATE_HZ)
        samples = torch.from_numpy(there.samples)[None]
        made = head(log_mel(samples) if small else vocoder_mel(samples))
        return Waveform(made[0].numpy(), there.rate_hz)

    return way


def clips(folder: Path, rows: int, keys: str | None) -> Iterator[tuple[str, str, Waveform]]:
    """Name, text ('' where unknown) and sound at 16 kHz of some clips, always the same ones.

    Raises:
        UsageError: no clip's key begins with ``keys``.
    """
    parts = spoken(folder) if any(folder.glob("*.jsonl")) else {}
    if parts:  # a recordings' own list, of another form, names no clip
        named = _named(parts, keys)
        if not named:
            raise UsageError(f"no clip of {folder} has a key that begins with {keys}")
        for key in chosen(named, rows):
            yield key, parts[key].text, clip(parts[key].part, folder)
        return
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in KINDS)
    for path in chosen(files, rows):
        yield str(path.relative_to(folder)), "", read_audio(path)


def _named(parts: dict[str, Spoken], keys: str | None) -> list[str]:
    """Keys that begin with ``keys``, or of the test, or all; a sound in several rows once."""
    if keys is None:
        keys = TEST if any(key.startswith(TEST) for key in parts) else ""
    places: dict[tuple[Any, ...], str] = {}
    for key, found in parts.items():
        if key.startswith(keys):
            part = found.part
            places.setdefault((part["path"], part.get("start"), part.get("end")), key)
    return list(places.values())


def chosen(names: list[Any], rows: int) -> list[Any]:
    """``rows`` of the names, or all where there are no more."""
    return sorted(random.Random(0).sample(names, min(rows, len(names))))


def measure(
    given: list[tuple[str, str, Waveform]], ways: dict[str, Way], peak: float, out: Path | None
) -> dict[str, Any]:
    """Figures of every way."""
    rows: dict[str, list[Any]] = {name: [] for name in ways}
    said: dict[str, list[tuple[str, Waveform]]] = {name: [] for name in ("original", *ways)}
    left_out = []
    for name, text, sound in track(given, "resynthesis", len(given), unit="clips"):
        try:
            original = prepare(sound, peak=peak)
        except UsageError as error:
            left_out.append(f"{name}: {error}")
            continue
        said["original"].append((text, original))
        for way, make in ways.items():
            made = make(original)
            rows[way].append(measures(original, made))
            said[way].append((text, made))
            if out is not None:
                file = out / way / f"{name.replace('/', '-')}.wav"
                write_audio(file, made.samples, made.rate_hz)
    if not said["original"]:
        reason = left_out[0] if left_out else "no sound file and no manifest lies there"
        raise UsageError(f"nothing could be measured: {reason}")
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    found: dict[str, Any] = {"clips": len(said["original"]), "left_out": len(left_out)}
    return found | {way: summary(rows[way]) for way in ways} | {"recognised": heard(said)}


def heard(said: dict[str, list[tuple[str, Waveform]]]) -> dict[str, Any]:
    """Shares recognised of the clips whose text is known, the originals' among them; or {}."""
    texts = {text for text, _ in said["original"]} - {""}
    if not texts:
        return {}
    recogniser = Recogniser(sorted(texts))
    return {
        way: figure(*recognised([s for s in sounds if s[0]], recogniser), f"one of {len(texts)}")
        for way, sounds in said.items()
    }


def show(found: dict[str, Any]) -> None:
    """Print a Markdown table, and all of it as JSON."""
    ways = [way for way in ("head", "codes") if way in found]
    print(f"| measure ({found['clips']} clips) | {' | '.join(ways)} | original |")
    print("| --- |" + " --- |" * (len(ways) + 1))
    for name, meaning in MEASURES.items():
        cells = [_cell(found[way][name]["value"]) for way in ways]
        print(f"| {name}: {meaning} | {' | '.join(cells)} | |")
    shares = found["recognised"]
    cells = [_cell(shares.get(way, {}).get("value")) for way in (*ways, "original")]
    print(f"| recognised, more is better | {' | '.join(cells)} |")
    print(json.dumps(found))


def _cell(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
