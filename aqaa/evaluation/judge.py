"""The judge: let the recogniser hear every answer, and the original clips as the yardstick."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aqaa.audio.file import read_audio
from aqaa.data.manifest import clip
from aqaa.evaluation.measure import Figure, figure

Ear = Callable[[np.ndarray], str]


def judge(
    rows: Iterable[Mapping[str, Any]], recogniser: Ear, folder: str | Path
) -> list[dict[str, Any]]:
    """The rows with ``heard`` filled in; '' where the model said nothing.

    Args:
        rows: answer rows; ``answer`` is a WAV below ``folder``, or empty.
        recogniser: samples (T,) at 16 kHz to the sentence heard.
        folder: where the rows' sounds lie.
    """
    judged = []
    for row in rows:
        heard = (
            recogniser(read_audio(Path(folder) / row["answer"]).samples) if row["answer"] else ""
        )
        judged.append({**row, "heard": heard})
    return judged


def ground_truth(clips: Iterable[Mapping[str, Any]], recogniser: Ear, root: str | Path) -> Figure:
    """Share of the original answer clips recognised as what they say.

    Args:
        clips: rows of a corpus's ``answers.jsonl``.
        recogniser: samples (T,) at 16 kHz to the sentence heard.
        root: the corpus folder.
    """
    hits = [recogniser(clip(row["audio"], Path(root)).samples) == row["text"] for row in clips]
    return figure(sum(hits), len(hits), "original answer clips")
