"""Weighted mean of backbones (paper section 3.4, Eq. 3): 5 SFT 1, 5 SFT 2, 1 DPO over 11."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aqaa import lineage
from aqaa.backbone.loading import Ids
from aqaa.backbone.merging import merge_files
from aqaa.errors import UsageError
from aqaa.storage import atomic_folder, read_json, sha256_file, write_json, write_text

STAGE = "merge"
SETTINGS = "config.yaml"
# Of config.json: who wrote it and how it is loaded; the tensors' own dtypes are compared.
_INCIDENTAL = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache"}


def merge(*, models: Sequence[str], weights: Sequence[float], out: str) -> int:
    """Average backbone folders into the run folder ``out``.

    Args:
        models: model folders, all grown from one pre-training and with the same ids.
        weights: one weight each; they are divided by their sum.
        out: run folder, its model/ written as a whole.

    Returns:
        The number of parameters.

    Raises:
        UsageError: the models do not fit one another, or ``out`` holds something else.
    """
    begun = time.monotonic()
    run, folders = Path(out), [Path(m) for m in models]
    _check_free(run)
    parents = {f"model_{i}": lineage.parent(f) for i, f in enumerate(folders)}
    _check_alike(folders)
    with atomic_folder(run / lineage.MODEL) as folder:
        parameters = merge_files(
            [f / "model.safetensors" for f in folders], list(weights), folder / "model.safetensors"
        )
        write_json(folder / "config.json", read_json(folders[0] / "config.json"))
        Ids.load(folders[0]).save(folder)
    settings = {"weights": [float(w) for w in weights]}
    record = {"models": [str(m) for m in models], **settings, "out": str(out)}
    lines = [f"{name}: {json.dumps(value)}\n" for name, value in record.items()]
    write_text(run / SETTINGS, "".join(lines))
    lineage.finish(
        run,
        lineage.Lineage(
            stage=STAGE,
            run=run.name,
            parents=parents,
            fingerprint=lineage.fingerprint(settings, parents),
            steps=0,
            seconds=time.monotonic() - begun,
            parameters=parameters,
            versions=lineage.versions(),
        ),
    )
    return parameters


def _check_free(run: Path) -> None:
    """Refuse a folder that is neither new nor a merge, finished or cut."""
    done = lineage.read_lineage(run)
    if done is not None and done.stage != STAGE:
        raise UsageError(f"{run} holds a run of {done.stage}, not a merge: choose another out")
    if done is None and run.exists():
        names = sorted(p.name for p in run.iterdir()) if run.is_dir() else [run.name]
        if other := [name for name in names if name not in (lineage.MODEL, SETTINGS)]:
            raise UsageError(f"{run} holds {other[0]}, which is no merge's: choose another out")


def _check_alike(folders: list[Path]) -> None:
    """Refuse models whose tensors or ids do not mean the same."""
    meanings = [_meaning(folder) for folder in folders]
    for folder, meaning in zip(folders[1:], meanings[1:], strict=True):
        for what in sorted(meaning.keys() | meanings[0].keys()):
            if meaning.get(what) != meanings[0].get(what):
                raise UsageError(
                    f"{folder} and {folders[0]} have different {what}: "
                    "merge models that were grown from one pre-training"
                )


def _meaning(folder: Path) -> dict[str, Any]:
    """What must be the same in all models, by its name in a sentence."""
    ids = Ids.load(folder)
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UsageError(f"{folder / 'config.json'} holds no settings of a model")
    return {
        "speech tokenizers": ids.tokenizer_hash,
        "vocabularies": ids.vocabulary,
        "layouts": ids.layout,
        "text tokenizers (tokenizer.json)": sha256_file(folder / "tokenizer.json"),
        **{
            f"sizes (config.json: {name})": value
            for name, value in config.items()
            if name not in _INCIDENTAL
        },
    }
