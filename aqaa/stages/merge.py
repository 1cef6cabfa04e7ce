"""Weighted mean of backbones (paper section 3.4, Eq. 3): 5 SFT 1, 5 SFT 2, 1 DPO over 11."""

import time
from collections.abc import Sequence
from pathlib import Path

from aqaa import lineage
from aqaa.backbone.loading import Ids
from aqaa.backbone.merging import merge_files
from aqaa.errors import UsageError
from aqaa.storage import atomic_folder, read_json, write_json


def merge(*, models: Sequence[str], weights: Sequence[float], out: str) -> int:
    """Average backbone folders into the run folder ``out``.

    Args:
        models: model folders, all grown from one pre-training and with the same ids.
        weights: one weight each; they are divided by their sum.
        out: run folder, its model/ written as a whole.

    Returns:
        The number of parameters.
    """
    begun = time.monotonic()
    folders = [Path(m) for m in models]
    parents = {f"model_{i}": lineage.parent(f) for i, f in enumerate(folders)}
    ids = [Ids.load(folder) for folder in folders]
    for folder, found in zip(folders[1:], ids[1:], strict=True):
        if (found.tokenizer_hash, found.vocabulary) != (ids[0].tokenizer_hash, ids[0].vocabulary):
            raise UsageError(f"{folder} and {folders[0]} have different tokenizers or vocabularies")
    configs = [read_json(folder / "config.json") for folder in folders]
    with atomic_folder(Path(out) / lineage.MODEL) as folder:
        parameters = merge_files(
            [f / "model.safetensors" for f in folders], list(weights), folder / "model.safetensors"
        )
        write_json(folder / "config.json", configs[0])
        ids[0].save(folder)
    settings = {"weights": [float(w) for w in weights]}
    lineage.finish(
        out,
        lineage.Lineage(
            stage="merge",
            run=Path(out).name,
            parents=parents,
            fingerprint=lineage.fingerprint(settings, parents),
            steps=0,
            seconds=time.monotonic() - begun,
            parameters=parameters,
            versions=lineage.versions(),
        ),
    )
    return parameters
