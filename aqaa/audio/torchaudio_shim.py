"""Make ``import torchaudio`` work where its compiled half does not fit the torch beside it.

The wheels on the package index are CUDA builds. Beside a CPU torch their import fails, and with it
that of every package which imports torchaudio merely because it is installed (transformers, peft).
The Python half needs none of the compiled code, so a stub takes the place of the loader.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

_FAILURES = (ImportError, OSError, RuntimeError)


def ensure() -> None:
    """Import torchaudio, with a stub for its compiled half if that fails; safe to call often.

    Does nothing where torchaudio loads by itself or is not installed. Must run before the first
    import of transformers or peft.
    """
    if "torchaudio" in sys.modules or importlib.util.find_spec("torchaudio") is None:
        return
    try:
        importlib.import_module("torchaudio")
        return
    except _FAILURES:
        _forget()
    sys.modules["torchaudio._extension"] = _stub()
    try:
        importlib.import_module("torchaudio")
    except _FAILURES:
        _forget()  # half an import must not look like a whole one


def _forget() -> None:
    for name in [n for n in sys.modules if n == "torchaudio" or n.startswith("torchaudio.")]:
        del sys.modules[name]


def _stub() -> ModuleType:
    stub: Any = ModuleType(
        "torchaudio._extension", "Stands in for the compiled half of torchaudio."
    )
    stub._IS_TORCHAUDIO_EXT_AVAILABLE = False
    stub._IS_ALIGN_AVAILABLE = False
    stub._load_lib = lambda lib: False
    stub._check_cuda_version = lambda: None
    stub.fail_if_no_align = _needs_compiled_half
    return stub


def _needs_compiled_half(function: Callable[..., Any]) -> Callable[..., NoReturn]:
    def fail(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            f"torchaudio's {function.__name__} needs its compiled half, "
            "which does not fit this torch"
        )

    return fail
