"""Weights as safetensors, one file or shards with an index, of which one is in memory at a time.

Letters: N numbers of one tensor, in whatever shape.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from aqaa.errors import UsageError
from aqaa.storage import read_json, save_tensors, write_json

SHARD_BYTES = 5_000_000_000
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def write_tensors(
    folder: str | Path, tensors: Iterable[tuple[str, Tensor]], *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write named tensors as they come, as transformers reads them.

    Args:
        folder: gets model.safetensors, or numbered shards and their index where one is too small.
        tensors: name and tensor; each is let go of once its shard is written.
        shard_bytes: a shard is not larger, unless a single tensor is.
    """
    folder = Path(folder)
    held: dict[str, Tensor] = {}
    held_bytes = total_bytes = 0
    shards: list[list[str]] = []
    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > shard_bytes:
            shards.append(_write(folder, len(shards), held))
            held, held_bytes = {}, 0
        held[name] = tensor
        held_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    shards.append(_write(folder, len(shards), held))
    if len(shards) == 1:
        _part(folder, 0).rename(folder / WEIGHTS)
        return
    files = {shard_name(number, len(shards)): names for number, names in enumerate(shards)}
    for number, file in enumerate(files):
        _part(folder, number).rename(folder / file)
    write_index(folder, files, total_bytes)


def shard_name(number: int, count: int) -> str:
    """The weight file of shard ``number``, from 0, of so many."""
    return WEIGHTS if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"


def write_index(folder: Path, files: Mapping[str, list[str]], total_bytes: int) -> None:
    """Say which file holds which tensors, where there are several."""
    places = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(places.items()))}
    write_json(folder / INDEX, index)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.safetensors"


def _write(folder: Path, number: int, held: dict[str, Tensor]) -> list[str]:
    save_tensors(_part(folder, number), held, {"format": "pt"})
    return list(held)


def tensor_files(folder: str | Path) -> dict[Path, list[str]]:
    """The weight files of a folder and the names of the tensors in each.

    Raises:
        UsageError: there are none, one is missing or damaged, or the index names others.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise UsageError(
                f"{folder} holds neither {WEIGHTS} nor {INDEX}: weights come as safetensors only"
            )
        return {folder / WEIGHTS: _names(folder / WEIGHTS)}
    index = read_json(folder / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise UsageError(f"{folder / INDEX} holds no weight_map of tensors and their files")
    files = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file:
            raise UsageError(f"{folder / INDEX} names {file!r}, which is no file beside it")
        names = _names(folder / file)
        if wrong := {n for n, f in places.items() if f == file} ^ set(names):
            raise UsageError(f"{folder / INDEX} and {file} differ in {min(wrong)}")
        files[folder / file] = names
    return files


def read_tensors(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder, one at a time (see :func:`tensor_files` for what is refused)."""
    for file, names in tensor_files(folder).items():
        with _open(file) as opened:
            for name in names:
                yield name, opened.get_tensor(name)


def tensor_shapes(folder: str | Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a folder; no numbers are read."""
    for file, names in tensor_files(folder).items():
        with _open(file) as opened:
            for name in names:
                yield name, tuple(opened.get_slice(name).get_shape())


def _names(file: Path) -> list[str]:
    with _open(file) as opened:
        return list(opened.keys())


def _open(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt")
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read {file}: {' '.join(str(error).split())}") from None
