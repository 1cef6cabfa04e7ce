"""Weighted mean of backbones (paper section 3.4, Eq. 3): 5 SFT 1, 5 SFT 2, 1 DPO over 11."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aqaa import lineage
from aqaa.backbone.loading import Ids
from aqaa.backbone.merging import PART, Rows, check_tensors, check_weights, merge_weights
from aqaa.backbone.shards import SHARD_BYTES, write_index
from aqaa.errors import UsageError
from aqaa.storage import atomic_folder, read_json, sha256_file, write_json, write_text

STAGE = "merge"
SETTINGS = "config.yaml"
WORKING = f".{lineage.MODEL}.merging"  # in the run folder, until the model is whole
PLAN = "plan.json"
# Of config.json: who wrote it and how it is loaded; the tensors' own dtypes are compared.
_INCIDENTAL = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache"}


def merge(
    *,
    models: Sequence[str],
    weights: Sequence[float],
    out: str,
    audio_weights: Sequence[float] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Average backbone folders into the run folder ``out``; the same call goes on with a cut one.

    Args:
        models: model folders or finished runs, all grown from one pre-training and with the same
            ids.
        weights: one weight each; they are divided by their sum.
        out: run folder, its model/ written as a whole.
        audio_weights: of the audio ids' rows of the embedding and the head (None: as the rest).
        shard_bytes: of a weight file.

    Returns:
        The number of parameters.

    Raises:
        UsageError: the models do not fit one another, or ``out`` holds something else.
    """
    begun = time.monotonic()
    run, folders = Path(out), [_model(Path(m)) for m in models]
    _check_free(run)
    settings: dict[str, Any] = {"weights": [float(w) for w in weights]}
    if audio_weights is not None:
        settings["audio_weights"] = [float(w) for w in audio_weights]
    for given in settings.values():
        check_weights(given, len(folders))
    _check_alike(folders)
    check_tensors(folders)
    made_of = {**settings, "shard_bytes": shard_bytes, "files": [_files(f) for f in folders]}
    with _working(run, made_of) as working, ThreadPoolExecutor(1) as pool:
        # Hashed beside the summing, which reads the same bytes; both are over before the seal.
        checked = pool.submit(lambda: [lineage.parent(folder) for folder in folders])
        merged = merge_weights(
            folders, settings["weights"], working, shard_bytes=shard_bytes,
            rows=_audio_rows(folders[0], settings.get("audio_weights")),
        )  # fmt: skip
        parents = {f"model_{i}": found for i, found in enumerate(checked.result())}
        with atomic_folder(run / lineage.MODEL, merged.hashes) as folder:
            for file in merged.files:
                os.replace(working / f"{file}{PART}", folder / file)
            if len(merged.files) > 1:
                write_index(folder, merged.files, merged.total_bytes)
            write_json(folder / "config.json", read_json(folders[0] / "config.json"))
            Ids.load(folders[0]).save(folder)
    record = {"models": [str(m) for m in models], **settings, "out": str(out)}
    lines = [f"{name}: {json.dumps(value)}\n" for name, value in record.items()]
    write_text(run / SETTINGS, "".join(lines))
    lineage.finish_at_once(
        run, stage=STAGE, settings=settings, parents=parents, begun_s=begun,
        parameters=merged.parameters, sealed=True,
    )  # fmt: skip
    return merged.parameters


def _model(folder: Path) -> Path:
    """The model of a finished run, or the folder itself."""
    if not folder.is_dir():
        raise UsageError(f"{folder} does not exist: run the stage that makes it first")
    if (folder / lineage.RECORD).is_file():
        return folder / lineage.MODEL
    if (folder / lineage.PARENTS).is_file():
        raise UsageError(
            f"{folder} is a run that has not ended: `aqaa export run={folder} out=...` writes the "
            "model of its latest saved state"
        )
    return folder


def _files(folder: Path) -> list[list[Any]]:
    """What names the content of a model without reading it: every file's name, size and time."""
    stats = ((path, path.stat()) for path in sorted(folder.iterdir()))
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _audio_rows(folder: Path, weights: list[float] | None) -> Rows | None:
    if weights is None:
        return None
    ids = Ids.load(folder).vocabulary
    return Rows(ids.rows, ids.linguistic_start, ids.marker_start, weights)


@contextmanager
def _working(run: Path, made_of: dict[str, Any]) -> Iterator[Path]:
    """A folder that a kill leaves behind for the same merge to go on with; refused, nothing stays.

    Raises:
        UsageError: the disk is full or fails; what was written stays.
    """
    for left in run.glob(f".{lineage.MODEL}.*"):
        if left.name != WORKING and not left.name.startswith(f".{lineage.MODEL}.old-"):
            shutil.rmtree(left, ignore_errors=True)  # of a kill in the very last moment
    working = run / WORKING
    if not (working / PLAN).is_file() or read_json(working / PLAN) != made_of:
        shutil.rmtree(working, ignore_errors=True)
        write_json(working / PLAN, made_of)
    try:
        yield working
    except UsageError:
        shutil.rmtree(working, ignore_errors=True)
        with suppress(OSError):
            run.rmdir()
        raise
    except OSError as error:
        raise UsageError(
            f"cannot merge into {run}: {error.strerror or error}; the same command goes on from "
            f"what is written"
        ) from error
    shutil.rmtree(working, ignore_errors=True)


def _check_free(run: Path) -> None:
    """Refuse a folder that is neither new nor a merge, finished or cut."""
    done = lineage.read_lineage(run)
    if done is not None and done.stage != STAGE:
        raise UsageError(f"{run} holds a run of {done.stage}, not a merge: choose another out")
    if done is None and run.exists():
        names = sorted(p.name for p in run.iterdir()) if run.is_dir() else [run.name]
        mine = (lineage.MODEL, SETTINGS)
        if other := [n for n in names if n not in mine and not n.startswith(f".{mine[0]}.")]:
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
