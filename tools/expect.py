"""What to expect of every recipe, taken from a finished walkthrough: recipes/*.json, their pages.

    python tools/expect.py runs/smoke --preset walkthrough/smoke
    python tools/expect.py runs/walkthrough

Loss and time are the runs' own; memory is the peak of a process that takes each run's first steps
again, and one check, in a scratch folder. tests/recipes/test_numbers.py holds the smallest chain
and the pages to what is written here: after a change that is meant to move a loss, run this anew.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from aqaa.lineage import METRICS, Lineage, read_lineage
from aqaa.storage import read_json, write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"
STAGES = {
    "tokenizer": ("tokenizer_linguistic", "tokenizer_semantic"),
    "pretrain": ("pretrain",),
    "sft": ("sft_1", "sft_2"),
    "dpo": ("dpo",),
    "vocoder": ("vocoder_flow", "vocoder_waveform"),
}
SMOKE, FULL = "walkthrough/smoke", "walkthrough"
BEGIN, END = "<!-- expected: tools/expect.py writes this from {} -->", "<!-- expected ends -->"
_MEASURED_STEPS = 30
# A loss may be so much off on another machine. Pairs are sampled from a model of a few steps.
TOLERANCE = {"dpo": 0.05}
_TOLERANCE = 0.02


def main(words: list[str] | None = None) -> int:
    """Read the runs, measure their memory, write JSON and pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a finished walkthrough")
    parser.add_argument("--preset", choices=(SMOKE, FULL), default=FULL, help="that made it")
    given = parser.parse_args(words)
    for recipe, stages in STAGES.items():
        path = RECIPES / f"{recipe}.json"
        record: dict[str, Any] = read_json(path) if path.is_file() else {}
        record[given.preset] = {
            "machine": machine(),
            "date": datetime.now(UTC).date().isoformat(),
            "stages": {stage: expectation(given.folder, stage) for stage in stages},
        }
        write_json(path, dict(sorted(record.items())))
        page = path.with_suffix(".md")
        write_text(page, with_block(page.read_text("utf-8"), recipe, record))
        print(f"{path} and its page are written", flush=True)
    return 0


def expectation(folder: Path, stage: str) -> dict[str, Any]:
    """The figures of one finished run of a walkthrough."""
    run = folder / stage
    record = read_lineage(run)
    if record is None:
        raise SystemExit(f"{run} is not a finished run")
    return {
        "steps": record.steps,
        **losses(run),
        "tolerance": TOLERANCE.get(stage, _TOLERANCE),
        "seconds": round(record.seconds),
        "memory_bytes": memory_bytes(folder, stage, record),
        "parameters": record.parameters,
    }


def losses(run: Path) -> dict[str, float | None]:
    """``loss``, the mean over the last tenth of what was logged, and the last ``validation``."""
    with open(run / METRICS, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    trained = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    last = trained[-max(1, len(trained) // 10) :]
    checks = [float(row["validation/loss"]) for row in rows if row.get("validation/loss")]
    return {"loss": sum(last) / len(last), "validation": checks[-1] if checks else None}


def memory_bytes(folder: Path, stage: str, record: Lineage) -> int:
    """Peak of a process that takes the first steps of a run again, from the same parents."""
    settings = yaml.safe_load((folder / stage / "config.yaml").read_text("utf-8"))
    steps = min(record.steps, _MEASURED_STEPS)
    parents = {
        name: "null" if path is None else folder / Path(path).relative_to(settings["run"]["root"])
        for name, path in settings["parents"].items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        words = [stage.split("_")[0], f"preset=walkthrough/{stage}", f"run.root={scratch}"]
        words += [f"run.steps={steps}", f"trainer.val_check_interval={steps}"]
        words += [f"parents.{name}={path}" for name, path in parents.items()]
        process = subprocess.Popen(
            [sys.executable, "-m", "aqaa", *words], stdout=subprocess.DEVNULL, cwd=ROOT
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the first steps of {stage} did not run")
    return usage.ru_maxrss * 1024


def machine() -> str:
    """The processor and how many cores there are."""
    info = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.partition(": ")[2] for line in info if line.startswith("model name")]
    return f"{names[0] if names else 'a processor without a name'}, {os.cpu_count()} cores"


# ---- pages


def with_block(text: str, recipe: str, record: dict[str, Any]) -> str:
    """A page with its block replaced by what the record says."""
    begin = BEGIN.format(f"{recipe}.json")
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise SystemExit(f"recipes/{recipe}.md has no lines {begin} and {END}")
    return f"{before}{begin}\n{block(record)}{END}{after}"


def block(record: dict[str, Any]) -> str:
    """The table of a page, and where it was measured."""
    lines = ["| run | steps | loss | on held-out voices | time | memory |"]
    lines.append("|---|---|---|---|---|---|")
    for preset in (FULL, SMOKE):
        for stage, figures in record.get(preset, {"stages": {}})["stages"].items():
            held = figures["validation"]
            cells = [
                stage if preset == FULL else f"{stage} of {preset}",
                f"{figures['steps']:,}",
                f"{figures['loss']:.3g}",
                "not checked" if held is None else f"{held:.3g}",
                f"{figures['seconds'] // 60}:{figures['seconds'] % 60:02d}",
                f"{figures['memory_bytes'] / 1e9:.2f} GB",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    places = sorted({f"{part['machine']} ({part['date']})" for part in record.values()})
    said = f"One thread of {' and of '.join(places)}, beside other work: times are no promise."
    return "\n".join([*lines, "", said, ""])


if __name__ == "__main__":
    sys.exit(main())
