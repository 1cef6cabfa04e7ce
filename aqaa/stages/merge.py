"""Weighted mean of backbones (paper section 3.4, Eq. 3): 5 SFT 1, 5 SFT 2, 1 DPO over 11."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqaa import lineage
from aqaa.backbone.loading import Ids
from aqaa.backbone.merging import PART, Rows, check_models, check_weights, merge_weights
from aqaa.backbone.saved import saved_model, started_from
from aqaa.backbone.shards import SHARD_BYTES, write_index
from aqaa.backbone.slices import StoredModel
from aqaa.errors import UsageError
from aqaa.states import STATE, STATES, saved_states
from aqaa.storage import atomic_folder, read_json, sha256_file, write_json, write_text

STAGE = "merge"
SETTINGS = "config.yaml"
WORKING = f".{lineage.MODEL}.merging"  # in the run folder, until the model is whole
PLAN = "plan.json"
# Of config.json: who wrote it and how it is loaded; the tensors' own dtypes are compared.
_INCIDENTAL = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache"}


@dataclass(frozen=True)
class _Source:
    """One of the models: its tensors, and the folder whose config.json and ids are its own.

    ``path`` names it: a model's folder, or a saved state whose run began with ``settings``.
    """

    path: Path
    settings: Path
    model: StoredModel

    @property
    def folders(self) -> list[Path]:
        """Where its tensors lie: in a state, and the rest, not trained, in the model before."""
        return sorted({file.parent for file in self.model.files} | {self.path})


def merge(
    *,
    models: Sequence[str],
    weights: Sequence[float],
    out: str,
    audio_weights: Sequence[float] | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Average backbones into the run folder ``out``; the same call goes on with a cut one.

    Args:
        models: model folders, runs (one that has not ended stands for its latest saved state), or
            saved states, of one process or of many ranks; all grown from one pre-training and with
            the same ids.
        weights: one weight each; they are divided by their sum.
        out: run folder, its model/ written as a whole.
        audio_weights: of the audio ids' rows of the embedding and the head (None: as the rest).
        dtype: ``float32``, ``bfloat16`` or ``float16`` to round to, whatever the models have (None:
            theirs, which must be alike; a saved state has float32).
        shard_bytes: of a weight file.

    Returns:
        The number of parameters.

    Raises:
        UsageError: the models do not fit one another, or ``out`` holds something else.
    """
    begun = time.monotonic()
    run, sources = Path(out), [_source(Path(m)) for m in models]
    _check_free(run)
    settings: dict[str, Any] = {"weights": [float(w) for w in weights]}
    if audio_weights is not None:
        settings["audio_weights"] = [float(w) for w in audio_weights]
    for given in settings.values():
        check_weights(given, len(sources))
    if dtype is not None:
        settings["dtype"] = dtype
    check_models([source.model for source in sources], dtype)
    _check_alike(sources)
    files = [_files(source) for source in sources]
    with _working(run, {**settings, "shard_bytes": shard_bytes, "files": files}) as working:
        merged = merge_weights(
            [source.model for source in sources], settings["weights"], working, dtype=dtype,
            rows=_audio_rows(sources[0], settings.get("audio_weights")), shard_bytes=shard_bytes,
        )  # fmt: skip
        parents = _parents(sources, merged.read)
        with atomic_folder(run / lineage.MODEL, merged.hashes) as folder:
            for file in merged.files:
                os.replace(working / f"{file}{PART}", folder / file)
            if len(merged.files) > 1:
                write_index(folder, merged.files, merged.total_bytes)
            _describe(folder, sources[0].settings, dtype)
    record = {"models": [str(m) for m in models], **settings, "out": str(out)}
    lines = [f"{name}: {json.dumps(value)}\n" for name, value in record.items()]
    write_text(run / SETTINGS, "".join(lines))
    lineage.finish_at_once(
        run, stage=STAGE, settings=settings, parents=parents, begun_s=begun,
        parameters=merged.parameters, sealed=True,
    )  # fmt: skip
    return merged.parameters


def _source(folder: Path) -> _Source:
    """The model of a finished run, the latest state of another run, a state, or a model folder."""
    if not folder.is_dir():
        raise UsageError(f"{folder} does not exist: run the stage that makes it first")
    if (folder / lineage.RECORD).is_file():
        return _Source(folder / lineage.MODEL, folder / lineage.MODEL,
                       StoredModel.of(folder / lineage.MODEL))  # fmt: skip
    if (folder / lineage.PARENTS).is_file():
        states = saved_states(folder / STATES)
        if not states:
            raise UsageError(f"{folder} is a run that has not ended and has saved no state")
        return _saved(folder, states[0])
    if (folder / f"{STATE}.json").is_file():
        return _saved(folder.parent.parent, folder)
    return _Source(folder, folder, StoredModel.of(folder))


def _saved(run: Path, state: Path) -> _Source:
    start = started_from(run)
    return _Source(state, start, saved_model(run, state, start))


def _parents(
    sources: list[_Source], read: list[Mapping[Path, str]]
) -> dict[str, lineage.Parent]:
    """Every folder that was read, checked by what was hashed on the way."""
    parents = {}
    for number, (source, known) in enumerate(zip(sources, read, strict=True)):
        for folder in source.folders:
            name = f"model_{number}" if folder == source.path else f"model_{number}_start"
            parents[name] = lineage.parent(folder, known)
    return parents


def _describe(folder: Path, like: Path, dtype: str | None) -> None:
    """Write what a model folder holds beside its weights."""
    config = read_json(like / "config.json")
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    write_json(folder / "config.json", config)
    Ids.load(like).save(folder)


def _files(source: _Source) -> list[list[Any]]:
    """What names the content of a model without reading it: every file's name, size and time."""
    folders = {*source.folders, source.settings}
    stats = ((path, path.stat()) for folder in sorted(folders) for path in sorted(folder.iterdir()))
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _audio_rows(source: _Source, weights: list[float] | None) -> Rows | None:
    if weights is None:
        return None
    ids = Ids.load(source.settings).vocabulary
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


def _check_alike(sources: list[_Source]) -> None:
    """Refuse models whose tensors or ids do not mean the same."""
    meanings = [_meaning(source.settings) for source in sources]
    for source, meaning in zip(sources[1:], meanings[1:], strict=True):
        for what in sorted(meaning.keys() | meanings[0].keys()):
            if meaning.get(what) != meanings[0].get(what):
                raise UsageError(
                    f"{source.path} and {sources[0].path} have different {what}: "
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
