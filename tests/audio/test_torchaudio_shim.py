"""The shim beside torchaudios that load, do not load, are broken beyond help, or absent."""

import os
import subprocess
import sys
from pathlib import Path

LOADS = "VERSION = 'whole'\n"
BROKEN_HALF = """
from . import _extension
from ._extension import _IS_TORCHAUDIO_EXT_AVAILABLE, fail_if_no_align
VERSION = 'python half'

@fail_if_no_align
def forced_align():
    pass
"""
BROKEN_EXTENSION = "raise OSError('Could not load this library: _torchaudio.abi3.so')\n"
BEYOND_HELP = "raise ImportError('no such symbol')\n"


def in_fresh_python(folder: Path, code: str, **files: str) -> str:
    """Run ``code`` in a process that sees a made-up torchaudio of ``files``; its output."""
    package = folder / "torchaudio"
    for name, content in files.items():
        package.mkdir(exist_ok=True)
        (package / f"{name}.py").write_text(content)
    source = f"import sys\nfrom aqaa.audio.torchaudio_shim import ensure\n{code}"
    here = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), here])}
    done = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_torchaudio_that_loads_is_left_alone(tmp_path: Path) -> None:
    code = """
ensure(); first = sys.modules['torchaudio']; ensure()
print(first.VERSION, sys.modules['torchaudio'] is first, 'torchaudio._extension' in sys.modules)
"""
    assert in_fresh_python(tmp_path, code, __init__=LOADS) == "whole True False"


def test_a_torchaudio_without_its_compiled_half_loads_the_rest(tmp_path: Path) -> None:
    code = """
try:
    import torchaudio
except OSError:
    print('broken before')
ensure()
import torchaudio
print(torchaudio.VERSION, torchaudio._IS_TORCHAUDIO_EXT_AVAILABLE)
try:
    torchaudio.forced_align()
except RuntimeError as error:
    print(error)
"""
    printed = in_fresh_python(tmp_path, code, __init__=BROKEN_HALF, _extension=BROKEN_EXTENSION)
    assert printed.splitlines() == [
        "broken before",
        "python half False",
        "torchaudio's forced_align needs its compiled half, which does not fit this torch",
    ]


def test_a_torchaudio_beyond_help_leaves_no_half_import(tmp_path: Path) -> None:
    code = "ensure(); print([n for n in sys.modules if n.startswith('torchaudio')])"
    assert in_fresh_python(tmp_path, code, __init__=BEYOND_HELP) == "[]"


def test_without_torchaudio_nothing_happens(tmp_path: Path) -> None:
    code = """
import importlib.util
importlib.util.find_spec = lambda name: None
ensure(); print('torchaudio' in sys.modules)
"""
    assert in_fresh_python(tmp_path, code) == "False"


def test_the_installed_torchaudio_and_peft_import_after_the_ear() -> None:
    code = """
import aqaa.audio.mel
import importlib.util
if importlib.util.find_spec('torchaudio'):
    import torchaudio.functional, torchaudio.compliance.kaldi
import peft
print('fine')
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "fine", done.stderr
