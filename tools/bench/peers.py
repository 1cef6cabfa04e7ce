"""An environment of its own for the peers of a bench, so that theirs and our pins never meet."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# torch comes first and pinned, or its CUDA build would be fetched a second time. torchaudio must
# not be there: beside a CPU torch its import fails, and peft imports it wherever it finds it.
FIRST = ("torch==2.13.0",)


def python_of(name: str, packages: tuple[str, ...], *, alone: tuple[str, ...] = ()) -> Path:
    """The Python that has the peers of bench ``name``, set up on the first call.

    AQAA_BENCH_VENV names an environment that has them already. Packages of ``alone`` come without
    what they ask for.
    """
    if given := os.environ.get("AQAA_BENCH_VENV"):
        return Path(given) / "bin" / "python"
    folder = ROOT / ".venv-bench" / name
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.is_file():
        print(f"setting up {folder} (minutes, once)", file=sys.stderr, flush=True)
        run = [sys.executable, "-m", "venv", str(folder)]
        subprocess.run(run, check=True, stdout=sys.stderr)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *FIRST], check=True, stdout=sys.stderr)
        pins = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, *pins, *packages], check=True, stdout=sys.stderr)
        if alone:
            subprocess.run([*pip, "--no-deps", *alone], check=True, stdout=sys.stderr)
        done.touch()
    return python
