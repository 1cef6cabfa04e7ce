"""Put a finished walkthrough's model into the package as its demo checkpoint.

    python tools/make_demo.py runs/long aqaa/assets/demo

Copies the merged model in 16-bit floats, one held-out question that it answers right, and a card
with the recipe and the measured figures. The figures of the card are those of the 32-bit model; the
suite lets the recogniser judge the 16-bit one's answer.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from aqaa.data.manifest import read_manifest
from aqaa.errors import UsageError
from aqaa.pipeline import Pipeline
from aqaa.storage import atomic_folder, read_json, write_json

HEADLINES = ("answers_correct", "text_correct", "text_audio_agreement", "resynthesis_recognised",
             "ground_truth_recognised", "tokenizer_ceiling")  # fmt: skip


def make(run: Path, out: Path) -> None:
    """Write the demo folder from the walkthrough in ``run``."""
    results = read_json(run / "results.json")
    question = _question(run)
    # Of the corpus only what it was made from: no path of this machine goes along.
    corpus = read_json(run / "corpus" / "domain.json")
    with atomic_folder(out) as folder:
        Pipeline.load(run / "model").save(folder / "model", dtype=torch.float16)
        for organ in ("tokenizer", "backbone", "vocoder"):
            shutil.move(folder / "model" / organ, folder / organ)
        shutil.rmtree(folder / "model")
        shutil.copy(question["sound"], folder / "question.wav")
        write_json(
            folder / "card.json",
            {
                "name": "aqaa-demo",
                "summary": "a toy of synthetic speech, trained by this project's walkthrough",
                "recipe": "aqaa walkthrough",
                "seed": results["seed"],
                "versions": results["versions"],
                "data": {k: corpus[k] for k in ("seed", "counts", "families", "styles")},
                "steps": {s["stage"]: s["steps"] for s in results["stages"]},
                "seconds": {s["stage"]: s["seconds"] for s in results["stages"]},
                "figures": {name: results["details"][name] for name in HEADLINES},
                "control": results["control"],
                "question": {k: question[k] for k in ("text", "expected", "voice")},
                "precision": "float16",
                "licence": "Apache-2.0",
            },
        )


def _question(run: Path) -> dict[str, Any]:
    """A held-out, plainly asked question that the merged model answered right."""
    for shard in sorted(run.glob("answers_merge_*")):
        for row in read_manifest(shard / "answers.jsonl"):
            right = row["heard"] == row["text"] == row["expected"]
            if right and row["held_out"] and row["style"] == "plain" and row["family"] == "col":
                return {**row, "text": row["question_text"], "sound": shard / row["question"]}
    raise UsageError(f"{run} answered no held-out colour question right: train longer")


def main(words: list[str]) -> int:
    """The command line; returns the exit code."""
    if len(words) != 2:
        print("usage: python tools/make_demo.py WALKTHROUGH_FOLDER OUT_FOLDER", file=sys.stderr)
        return 2
    try:
        make(Path(words[0]), Path(words[1]))
    except UsageError as error:
        print(f"make_demo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
