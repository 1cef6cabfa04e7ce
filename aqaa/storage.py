"""Files that are whole or absent: written under a temporary name, synced, renamed; read strictly.

Trees we save carry ``MANIFEST.sha256`` (lines of ``<sha256>  <relative path>``), checked before use.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aqaa.errors import UsageError

MANIFEST = "MANIFEST.sha256"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; it becomes ``path`` only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: several writers (soundfile, matplotlib) choose the format by it.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None and Path(error.filename) != temporary:
            raise  # some other file of the block's, not the one being written
        raise UsageError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from error
    finally:
        if temporary.exists():
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``path`` as a whole, with its manifest, on success."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        write_manifest(temporary)
        old = path.with_name(f".{path.name}.old-{uuid.uuid4().hex[:8]}")
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as strict JSON (no NaN), whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON; a missing or broken file is a :class:`UsageError` that names it."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from None


def save_tensors(path: str | Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write a dict of tensors as safetensors, whole or not at all; keys are stored sorted."""
    from safetensors.torch import save_file

    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with atomic_path(path) as temporary:
        save_file(ready, str(temporary), metadata=metadata)


def load_tensors(path: str | Path) -> dict[str, Any]:
    """Read a safetensors file into ``{name: tensor}``; damage is a :class:`UsageError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except SafetensorError as error:
        raise UsageError(f"{path} is damaged or not a safetensors file: {error}") from None


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def write_manifest(folder: str | Path) -> str:
    """Hash every file below ``folder`` into its manifest; returns the tree's hash."""
    folder = Path(folder)
    lines = [f"{sha256_file(p)}  {p.relative_to(folder).as_posix()}" for p in _files(folder)]
    write_text(folder / MANIFEST, "\n".join(lines) + "\n")
    return tree_hash(folder)


def tree_hash(folder: str | Path) -> str:
    """SHA-256 of the folder's manifest, the name of its whole content; '' where there is none."""
    manifest = Path(folder) / MANIFEST
    return sha256_file(manifest) if manifest.exists() else ""


def verify_manifest(folder: str | Path) -> str:
    """Check every file against the manifest and return the tree's hash.

    Raises:
        UsageError: no manifest, a listed file missing or changed.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST
    if not manifest.exists():
        raise UsageError(f"{folder} holds no {MANIFEST}: it is not a finished folder of ours")
    for line in manifest.read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ", 1)
        if not (folder / name).is_file():
            raise UsageError(f"{folder} is incomplete: {name} is missing")
        if sha256_file(folder / name) != digest:
            raise UsageError(f"{folder / name} is damaged: its SHA-256 differs from {MANIFEST}")
    return sha256_file(manifest)


def save_organ(folder: str | Path, name: str, settings: dict[str, Any], state: dict[str, Any]) -> None:
    """Write an organ as ``config.json`` (its name and constructor settings) and safetensors."""
    write_json(Path(folder) / "config.json", {"organ": name, **settings})
    save_tensors(Path(folder) / "model.safetensors", state)


def load_organ(folder: str | Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what :func:`save_organ` wrote; (settings, state in float32).

    Raises:
        UsageError: the folder is missing, damaged, or holds another organ.
    """
    folder = Path(folder)
    settings = read_json(folder / "config.json")
    found = settings.pop("organ", settings.get("model_type", "something else"))
    if found != name:
        raise UsageError(f"{folder} holds a {found}, not a {name}")
    state = load_tensors(folder / "model.safetensors")
    return settings, {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
