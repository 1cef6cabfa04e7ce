"""A finished run in miniature, made up: sounds, answer rows, metrics and results for the report."""

import csv
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aqaa.audio.file import write_audio
from aqaa.evaluation.measure import control, figure, summarise

RATE_HZ = 16_000
FAMILIES = {
    "colours": ("what is the colour of the grass", "the grass is green"),
    "opposites": ("what is the opposite of early", "the opposite of early is late"),
    "days": ("which day comes after monday", "tuesday comes after monday"),
    "places": (
        "where do i find the yellow lantern",
        "you find the yellow lantern in the kitchen on the shelf beside the window",
    ),
}
STYLES = {
    "plain": (1.0, 1.0),
    "slow": (1.5, 1.0),
    "quick": (0.7, 1.0),
    "high": (1.0, 1.5),
    "low": (1.0, 0.75),
}
STAGES = [
    ("tokenizer_linguistic", [], 3000, 150.0, 1.4e6),
    ("tokenizer_semantic", [], 3000, 140.0, 1.4e6),
    ("pretrain", ["tokenizer_linguistic", "tokenizer_semantic"], 2500, 260.0, 1.5e6),
    ("sft_1", ["pretrain", "tokenizer_linguistic"], 2000, 190.0, 1.5e6),
    ("sft_2", ["sft_1"], 800, 80.0, 1.5e6),
    ("dpo", ["sft_1"], 120, 35.0, 1.5e6),
    ("merge", ["sft_1", "sft_2", "dpo"], None, 0.6, 1.5e6),
    ("vocoder_flow", ["tokenizer_linguistic", "tokenizer_semantic"], 1800, 170.0, 3.0e6),
    ("vocoder_waveform", [], 900, 60.0, 1.2e6),
]


def tone(duration_s: float, f0_hz: float, pad_s: float = 0.0) -> np.ndarray:
    """Harmonics of ``f0_hz`` with a slow swell, silence on both sides: (T,) at 16 kHz."""
    t = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    sound = sum(np.sin(2 * np.pi * f0_hz * k * t) / k for k in range(1, 12))
    sound *= 0.8 + 0.2 * np.sin(2 * np.pi * 3 * t)
    sound = np.pad(sound / np.abs(sound).max() * 0.5, round(pad_s * RATE_HZ))
    return sound.astype(np.float32)


def _tokens(text: str, groups: int, random_: random.Random) -> list[list[Any]]:
    words = [["text", word] for word in text.split()] + [["marker", "<text_end>"]]
    audio = [
        [["linguistic", random_.randrange(1024)] for _ in range(2)]
        + [["semantic", random_.randrange(4096)] for _ in range(3)]
        for _ in range(groups)
    ]
    out = words[:10] + [["marker", "<audio_start>"]]
    for i, group in enumerate(audio):
        out += words[10:20] if i == 3 else []
        out += group
    return [*out, ["marker", "<audio_end>"], ["marker", "<|EOT|>"]]


def make_rows(
    folder: Path, *, questions: int, models: dict[str, float], sounds: int
) -> list[dict[str, Any]]:
    """Answer rows of made-up models with the given accuracy; the first ``sounds`` have WAVs."""
    random_ = random.Random(0)
    rows = []
    for model, accuracy in models.items():
        for i in range(questions):
            family, style = list(FAMILIES)[i % 4], list(STYLES)[i // 4 % 5]
            question, expected = FAMILIES[family]
            others = [answer for _, answer in FAMILIES.values() if answer != expected]
            wrong = random_.choice(others)
            luck = random_.random()
            text = expected if luck < accuracy + (1 - accuracy) / 2 else wrong
            heard = expected if luck < accuracy else wrong
            name = f"audio/{model}_{i:03d}"
            stretch, pitch = STYLES[style]
            if i < sounds and model == "merge":
                write_audio(folder / f"{name}_q.wav", tone(1.6, 180 + i), RATE_HZ)
                write_audio(
                    folder / f"{name}_a.wav", tone(1.3 * stretch, 110 * pitch, 0.05), RATE_HZ
                )
            rows.append(
                {
                    "id": f"t{i:03d}",
                    "question": f"{name}_q.wav",
                    "expected": expected,
                    "text": text,
                    "answer": f"{name}_a.wav",
                    "heard": heard,
                    "family": family,
                    "style": style,
                    "voice": "gmw/en+f2",
                    "held_out": i % 3 == 0,
                    "model": model,
                    "question_text": question + ("" if style == "plain" else f" {style}ly"),
                    "ids": [],
                    "tokens": _tokens(text, round(11 * stretch), random_),
                    "seconds": 0.3 + i / 1000,
                    "duration_s": 1.4,
                }
            )
    return rows


def write_metrics(run: Path, steps: int, random_: random.Random) -> None:
    """A ``metrics.csv`` as Lightning leaves it: sparse rows, training and validation apart."""
    run.mkdir(parents=True)
    columns = [
        "epoch",
        "step",
        "lr",
        "train/loss",
        "train/accuracy_text",
        "train/grad_norm",
        "val/loss",
        "val/accuracy_text",
    ]
    with open(run / "metrics.csv", "w", newline="") as handle:
        out = csv.DictWriter(handle, columns)
        out.writeheader()
        for step in range(0, steps, max(1, steps // 300)):
            fall = math.exp(-4 * step / steps)
            noise = random_.uniform(0.85, 1.15)
            out.writerow(
                {
                    "epoch": 0,
                    "step": step,
                    "train/loss": (6 * fall + 0.12) * noise,
                    "train/accuracy_text": 1 - 0.9 * fall * noise,
                    "lr": 1e-3 * (1 - step / steps),
                    "train/grad_norm": 0.3 + 3 * fall * noise,
                }
            )
            if step % (steps // 5) < steps // 300:
                out.writerow(
                    {
                        "epoch": 0,
                        "step": step,
                        "val/loss": 6.1 * fall + 0.2,
                        "val/accuracy_text": 1 - 0.92 * fall,
                    }
                )


@pytest.fixture
def tones():
    """The tone generator."""
    return tone


def fake_run(folder: Path, *, questions: int = 40, sounds: int = 40) -> SimpleNamespace:
    """Everything ``write_report`` takes, made up, with its sounds in ``folder``."""
    random_ = random.Random(1)
    rows = make_rows(
        folder,
        questions=questions,
        sounds=sounds,
        models={"merge": 0.9, "sft_1": 0.86, "sft_2": 0.93, "dpo": 0.82},
    )
    flat, details = summarise(rows)
    for key, k, n in (
        ("ground_truth_recognised", 358, 360),
        ("resynthesis_recognised", 351, 360),
        ("tokenizer_ceiling", 340, 360),
    ):
        details[key] = figure(k, n, "original answer clips")
        flat[key] = details[key]["value"]
    runs = {}
    for stage, _, steps, *_ in STAGES:
        runs[stage] = folder / "runs" / stage
        if steps:
            write_metrics(runs[stage], steps, random_)
    del runs["merge"]
    with_sound = [row for row in rows if (folder / row["answer"]).exists()]
    results = {
        **flat,
        "details": details,
        "control": control(with_sound, folder=folder),
        "seed": 0,
        "versions": {
            "aqaa": "0.1.0",
            "torch": "2.13.0+cpu",
            "lightning": "2.6.6",
            "python": "3.11.9",
        },
        "stages": [
            {
                "stage": s,
                "run": f"runs/{s}",
                "parents": p,
                "steps": n,
                "seconds": t,
                "parameters": int(w),
            }
            for s, p, n, t, w in STAGES
        ],
    }
    zipf = [
        [max(0, int(9000 / (i + 8) ** 0.9 - random_.uniform(0, 12))) for i in range(n)]
        for n in (1024, 4096)
    ]
    extra = {
        "codebooks": {"linguistic": zipf[0], "semantic": zipf[1]},
        "settings": {"machine": "2 cores", "preset": "walkthrough"},
    }
    return SimpleNamespace(folder=folder, results=results, answers=rows, runs=runs, extra=extra)


@pytest.fixture
def run(tmp_path):
    """A small made-up run."""
    return fake_run(tmp_path, questions=20, sounds=20)
