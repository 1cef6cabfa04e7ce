"""``aqaa doctor``: what could break here, tried for real; ``aqaa env``: versions for a report."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Literal

from packaging.requirements import Requirement

Level = Literal["ok", "warn", "fail"]
INSTALL = "run `make setup`, or pip install with constraints.txt"
DISK_NEEDED_GB = 6  # of a whole walkthrough
DISK_LEAST_GB = 1
MEMORY_NEEDED_GB = 6


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: what was looked at, what was seen, what to do about it."""

    level: Level
    subject: str
    seen: str
    cure: str = ""

    def __str__(self) -> str:
        cure = f"; {self.cure}" if self.cure else ""
        return f"{self.level:<4}  {self.subject:<18} {self.seen}{cure}"


def doctor() -> int:
    """Print every finding as it is made; 1 when something essential fails, else 0."""
    failed = 0
    for finding in findings():
        print(finding, flush=True)
        failed += finding.level == "fail"
    if failed:
        print(f"{failed} essential checks failed", flush=True)
    return 1 if failed else 0


def env() -> int:
    """Print python, platform and the versions of what aqaa depends on, importing none of it."""
    print(f"{'aqaa':<20} {_version('aqaa') or 'not installed'}")
    print(f"{'python':<20} {platform.python_version()} ({sys.executable})")
    print(f"{'platform':<20} {platform.platform()}, {_cores()} cores")
    for requirement, _ in requirements():
        print(f"{requirement.name:<20} {_version(requirement.name) or 'not installed'}")
    return 0


def findings() -> Iterator[Finding]:
    """All checks in order, cheap ones first."""
    yield python_finding(sys.version_info[:2])
    for requirement, essential in requirements():
        yield package_finding(requirement, _version(requirement.name), essential)
    yield disk_finding(shutil.disk_usage(".").free / 1e9)
    yield memory_finding(_memory_gb())
    for check in (_torchaudio, _peft, _espeak, _pocketsphinx, _threads, _device):
        yield _tried(check)


def requirements() -> list[tuple[Requirement, bool]]:
    """What aqaa's card asks for, and whether it is essential (core) or of the demo only."""
    try:
        card = metadata.requires("aqaa") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for requirement in map(Requirement, card):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.append((requirement, True))
        elif requirement.marker.evaluate({"extra": "demo"}):
            found.append((requirement, False))
    return found


def python_finding(version: tuple[int, ...]) -> Finding:
    """Python must be 3.11 or newer."""
    seen = ".".join(map(str, version))
    if version < (3, 11):
        return Finding("fail", "python", seen, "make the environment with Python 3.11 or newer")
    return Finding("ok", "python", seen)


def package_finding(requirement: Requirement, version: str | None, essential: bool) -> Finding:
    """A package's installed version against the range the card gives."""
    bad: Level = "fail" if essential else "warn"
    if version is None:
        purpose = "" if essential else " (the walkthrough and the judge need it)"
        return Finding(bad, requirement.name, f"not installed{purpose}", INSTALL)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(bad, requirement.name, f"{version} is not {requirement.specifier}", INSTALL)
    return Finding("ok", requirement.name, version)


def disk_finding(free_gb: float) -> Finding:
    """Free space where runs are written."""
    seen = f"{free_gb:.1f} GB free here"
    if free_gb < DISK_LEAST_GB:
        return Finding("fail", "disk", seen, "make room, or work in another folder")
    if free_gb < DISK_NEEDED_GB:
        return Finding("warn", "disk", seen, f"a walkthrough may need {DISK_NEEDED_GB} GB")
    return Finding("ok", "disk", seen)


def memory_finding(total_gb: float) -> Finding:
    """Memory of the machine."""
    seen = f"{total_gb:.1f} GB"
    if total_gb < MEMORY_NEEDED_GB:
        cure = f"a walkthrough may need {MEMORY_NEEDED_GB} GB: run one stage at a time"
        return Finding("warn", "memory", seen, cure)
    return Finding("ok", "memory", seen)


def _tried(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a broken library may raise anything, and that is the finding
        reason = " ".join(str(error).split())[:200]
        level: Level = "warn" if check in (_espeak, _pocketsphinx) else "fail"
        name = check.__name__.lstrip("_")
        return Finding(level, name, f"does not load: {type(error).__name__}: {reason}", INSTALL)


def _torchaudio() -> Finding:
    from aqaa.audio import torchaudio_shim

    torchaudio_shim.ensure()
    import_module("torchaudio.functional")
    extension = import_module("torchaudio._extension")
    if getattr(extension, "__spec__", None) is not None:
        return Finding("ok", "torchaudio", "loads whole beside this torch")
    return Finding("ok", "torchaudio", "loads through the shim (compiled half left out)")


def _peft() -> Finding:
    from aqaa.audio import torchaudio_shim

    torchaudio_shim.ensure()
    import_module("peft")
    return Finding("ok", "peft", "imports beside this torchaudio")


def _espeak() -> Finding:
    from aqaa.data.espeak import Espeak

    phones = Espeak().phonemes("hello")
    return Finding("ok", "espeak", f"speaks (hello is {' '.join(phones)})")


def _pocketsphinx() -> Finding:
    from aqaa.evaluation.recognise import Recogniser

    Recogniser(["hello"])
    return Finding("ok", "pocketsphinx", "loads with its acoustic model")


def _threads() -> Finding:
    import torch

    asked = os.environ.get("OMP_NUM_THREADS", "unset")
    seen = f"{torch.get_num_threads()} of {_cores()} cores (OMP_NUM_THREADS {asked})"
    if torch.get_num_threads() > _cores():
        return Finding("warn", "threads", seen, f"set OMP_NUM_THREADS={_cores()}")
    return Finding("ok", "threads", seen)


def _device() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("ok", "device", f"no GPU seen by torch {torch.__version__}: the CPU trains")
    count = torch.cuda.device_count()
    return Finding("ok", "device", f"{count} x {torch.cuda.get_device_name(0)}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
