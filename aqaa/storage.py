"""Files that are whole or absent: written under a temporary name, synced, renamed; read strictly.

Trees we save carry ``MANIFEST.sha256``, lines of ``<sha256>  <relative path>``.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from safetensors import SafetensorError

from aqaa.errors import UsageError

MANIFEST = "MANIFEST.sha256"
Organ = TypeVar("Organ")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; it becomes ``path`` only if the block succeeds.

    Raises:
        UsageError: ``path`` cannot be written (disk full, no permission, a file in the way).
    """
    path = Path(path)
    # The suffix stays last: several writers (soundfile, matplotlib) choose the format by it.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _settle(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        _refuse(error, temporary, path)
    finally:
        if temporary.exists():
            temporary.unlink()


@contextmanager
def atomic_folder(
    path: str | Path, known: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``path`` as a whole, with its manifest, on success.

    Args:
        path: of the folder.
        known: SHA-256 of files, by their names in it, that were hashed as they were written.

    Raises:
        UsageError: ``path`` cannot be written, or holds what is not ours to lose; what was there
            before is still there.
    """
    path = Path(path)
    check_replaceable(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        write_manifest(temporary, known)
        for file in _files(temporary):
            _settle(file)
        _swap(temporary, path)
    except (OSError, SafetensorError) as error:
        _refuse(error, temporary, path)
    except UsageError as error:  # of a file inside: named by where it was to be
        raise UsageError(str(error).replace(str(temporary), str(path))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: str | Path) -> None:
    """Refuse to replace what we did not make: only an empty folder or one with our manifest goes.

    Raises:
        UsageError: ``path`` is a file, or a folder of something else.
    """
    path = Path(path)
    try:
        if path.is_dir():
            foreign = not (path / MANIFEST).is_file() and any(path.iterdir())
        else:
            foreign = path.exists() or path.is_symlink()
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; nothing was changed") from None
    if foreign:
        raise UsageError(
            f"{path} exists and holds no {MANIFEST} of ours, so it is not replaced: "
            "choose another folder or remove it"
        )


def _swap(temporary: Path, path: Path) -> None:
    """Put ``temporary`` in the place of ``path``; a failure puts the old folder back."""
    old = path.with_name(f".{path.name}.old-{uuid.uuid4().hex[:8]}")
    kept = path.exists()
    if kept:
        os.replace(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        if kept:
            os.replace(old, path)
        raise
    if kept:
        shutil.rmtree(old, ignore_errors=True)


def _refuse(error: Exception, temporary: Path, path: Path) -> None:
    """Say that ``path`` could not be written, unless the error is about some other file."""
    if isinstance(error, OSError):
        about = Path(os.fsdecode(error.filename)) if error.filename is not None else temporary
        places = {temporary, *temporary.parents, path}
        if about not in places and temporary not in about.parents:
            raise error
        reason = error.strerror or str(error)
    else:
        reason = str(error)
    raise UsageError(f"cannot write {path}: {reason}; nothing was changed") from error


def _settle(path: Path) -> None:
    """Bring a file to the disk, as readable as the user's other new files."""
    mask = os.umask(0o022)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # safetensors leaves 0600: a team could not read its own models
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
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from None


def save_tensors(
    path: str | Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Write a dict of tensors as safetensors, whole or not at all; keys are stored sorted."""
    from safetensors.torch import save_file

    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with atomic_path(path) as temporary:
        save_file(ready, str(temporary), metadata=metadata)


def load_tensors(path: str | Path) -> dict[str, Any]:
    """Read a safetensors file into ``{name: tensor}``; damage is a :class:`UsageError`."""
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UsageError(f"{path} is damaged or not a safetensors file: {error}") from None


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def write_manifest(
    folder: str | Path, known: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Hash every file below ``folder`` that is not ``known`` into its manifest; the tree's hash."""
    folder = Path(folder)
    write_text(folder / MANIFEST, _listing(folder, known))
    return tree_hash(folder)


def _listing(folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> str:
    """What the manifest of a folder says."""
    names = {path: path.relative_to(folder).as_posix() for path in _files(folder)}
    lines = [f"{known.get(name) or sha256_file(path)}  {name}" for path, name in names.items()]
    return "\n".join(lines) + "\n"


def content_hash(path: str | Path, known: Mapping[Path, str] = MappingProxyType({})) -> str:
    """The hash of a file, or the one that :func:`write_manifest` would name a folder by.

    Args:
        path: of either.
        known: SHA-256 of files that were hashed as they were read.
    """
    path = Path(path)
    try:
        if path.is_file():
            return sha256_file(path)
        names = {f.relative_to(path).as_posix(): known[f] for f in _files(path) if f in known}
        return hashlib.sha256(_listing(path, names).encode("utf-8", "surrogateescape")).hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or path}: {error.strerror}") from None


def tree_hash(folder: str | Path) -> str:
    """SHA-256 of the folder's manifest, the name of its whole content; '' where there is none."""
    manifest = Path(folder) / MANIFEST
    return sha256_file(manifest) if manifest.exists() else ""


def verify_manifest(
    folder: str | Path,
    *,
    allow_extra: bool = False,
    known: Mapping[Path, str] = MappingProxyType({}),
) -> str:
    """Check every file against the manifest and return the tree's hash.

    Args:
        folder: a folder that :func:`write_manifest` sealed.
        allow_extra: let files lie there that the manifest does not list.
        known: SHA-256 of files that were hashed as they were read.

    Raises:
        UsageError: no manifest or a broken one; a file missing, changed or added.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST
    if not manifest.exists():
        raise UsageError(f"{folder} holds no {MANIFEST}: it is not a finished folder of ours")
    listed = set()
    for line in filter(None, manifest.read_bytes().decode("utf-8", "replace").splitlines()):
        digest, space, name = line.partition("  ")
        if not space or len(digest) != 64:
            raise UsageError(f"{manifest} is damaged: {line[:80]!r} is not a hash and a name")
        if not (folder / name).is_file():
            raise UsageError(f"{folder} is incomplete: {name} is missing")
        if (known.get(folder / name) or sha256_file(folder / name)) != digest:
            raise UsageError(f"{folder / name} is damaged: its SHA-256 differs from {MANIFEST}")
        listed.add(name)
    found = {p.relative_to(folder).as_posix() for p in _files(folder)}
    if not allow_extra and (extra := sorted(found - listed)):
        raise UsageError(f"{folder} holds {extra[0]}, which {MANIFEST} does not list: move it away")
    return sha256_file(manifest)


def save_organ(
    folder: str | Path,
    name: str,
    settings: dict[str, Any],
    state: dict[str, Any],
    dtype: Any = None,
) -> None:
    """Write an organ as ``config.json`` and ``model.safetensors``.

    Args:
        folder: made where it is missing.
        name: the organ's class.
        settings: of its constructor.
        state: its tensors.
        dtype: store floating-point tensors as this torch dtype (None: as they are).

    Raises:
        UsageError: a tensor has values that ``dtype`` cannot hold, or the folder cannot be written.
    """
    state = {k: narrowed(k, v, dtype) for k, v in state.items()}
    write_json(Path(folder) / "config.json", {"organ": name, **settings})
    save_tensors(Path(folder) / "model.safetensors", state)


# Makes sharded parameters whole inside a `with`, which says whether this process keeps them.
Gather = Callable[[Sequence[Any]], AbstractContextManager[bool]]


@contextmanager
def in_place(parameters: Sequence[Any]) -> Iterator[bool]:
    """The :data:`Gather` of a single process: everything is whole, and its own to keep."""
    yield True


def narrowed(name: str, tensor: Any, dtype: Any) -> Any:
    """A tensor with its floats in ``dtype`` (None: as they are).

    Raises:
        UsageError: a value is too large for ``dtype``.
    """
    tensor = tensor.detach()
    if dtype is None or not tensor.is_floating_point():
        return tensor
    stored = tensor.to(dtype)
    if not bool((stored.isfinite() == tensor.isfinite()).all()):
        largest = float(tensor.abs().max())
        raise UsageError(f"tensor {name} reaches {largest:g}, which {dtype} cannot hold")
    return stored


def organ_of(folder: str | Path) -> str:
    """The class of the organ that lies in a folder, '' where none does."""
    settings = read_json(Path(folder) / "config.json")
    return str(settings.get("organ", "")) if isinstance(settings, dict) else ""


def load_organ(folder: str | Path, organ: type[Organ]) -> Organ:
    """Build the organ that :func:`save_organ` wrote, in float32 and evaluation mode.

    Args:
        folder: holds config.json and model.safetensors.
        organ: its class, a torch module.

    Raises:
        UsageError: the folder is missing, damaged, or holds another organ.
    """
    folder, name = Path(folder), organ.__name__
    settings = read_json(folder / "config.json")
    if not isinstance(settings, dict):
        raise UsageError(f"{folder / 'config.json'} holds no settings of a {name}")
    found = settings.pop("organ", settings.get("model_type", "something else"))
    if found != name:
        raise UsageError(f"{folder} holds a {found}, not a {name}")
    state = load_tensors(folder / "model.safetensors")
    try:
        built: Any = organ(**settings)
        # Stored halves become floats again where they are copied into the module.
        built.load_state_dict(state, strict=True)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{folder} does not fit a {name}: {reason}") from error
    return built.eval()
