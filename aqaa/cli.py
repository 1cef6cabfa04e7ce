"""``aqaa VERB key=value …``: help and errors of use answer at once, work starts only after.

Nothing heavy is imported at the top of this file or of what it imports there.
"""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from aqaa.errors import RunAgain, UsageError
from aqaa.runtime import usage
from aqaa.runtime.catalogue import nearest
from aqaa.runtime.command import error_of_use, perform
from aqaa.runtime.launch import leave
from aqaa.runtime.verbs import VERBS, Verb, family, find_verb

_HELP = ("--help", "-h")
_FLAGS = ("--help", "--cfg")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done, 1 failed, 2 wrong use, 65 a loss or gradient that is no number, 75 stopped by SIGUSR1 or
    SIGTERM with its state saved (run it again), 130 stopped by Ctrl-C; a hang ends with 70.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _quiet_libraries()
        code = _dispatch(words)
        leave()
        return code
    except RunAgain:
        leave()
        print("aqaa: stopped by a signal, everything is saved: run the same command again",
              file=sys.stderr)
        return 75
    except KeyboardInterrupt:
        print("\naqaa: stopped; the same command goes on from what is finished", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output left (`| head`); keep the interpreter from complaining about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        cause = error_of_use(error)
        if cause is None:
            raise
        if _debugging():
            traceback.print_exc()
        print(f"aqaa: {' '.join(str(cause).split())}", file=sys.stderr)
        _tell_launcher(cause.code)
        return cause.code


def _tell_launcher(code: int) -> None:
    """Leave the code where a launcher looks: srun reports that of the ranks it then kills."""
    if path := os.environ.get("AQAA_VERDICT"):
        with open(path, "a", encoding="utf-8") as file:
            print(code, file=file)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in (*_HELP, "help"):
        print(usage.overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("aqaa"))
        return 0
    if family(words[0]) and words[1:2] and words[1] in _HELP:
        print(usage.family_page(words[0]))
        return 0
    verb, rest = find_verb(words)
    if any(word in _HELP for word in rest):
        print(usage.page(verb))
        return 0
    if not verb.configured:
        return _unconfigured(verb, rest)
    show, overrides = _overrides(verb, rest)
    perform(verb, overrides, show=show)
    return 0


def _unconfigured(verb: Verb, rest: list[str]) -> int:
    if rest:
        raise UsageError(f"{verb.name} takes no arguments, but got {' '.join(rest)}")
    from aqaa.runtime import doctor

    return doctor.env() if verb.name == "env" else doctor.doctor()


def _overrides(verb: Verb, rest: list[str]) -> tuple[bool, list[str]]:
    """Whether to show the config only, and the overrides with the positional named."""
    show = False
    overrides: list[str] = []
    positional: str | None = None
    words = iter(rest)
    for word in words:
        if word == "--cfg" or word.startswith("--cfg="):
            what = word.partition("=")[2] or next(words, "")
            if what != "job":
                raise UsageError(
                    f"--cfg shows the composed config: write --cfg job, not --cfg {what}"
                )
            show = True
        elif word.startswith("-"):
            near = nearest(word, list(_FLAGS))
            hint = f"the nearest is {near}" if near else f"there are {' and '.join(_FLAGS)}"
            raise UsageError(f"there is no flag {word}: {hint}; settings are written key=value")
        elif verb.alias and word.startswith(f"{verb.alias}="):
            overrides.append(f"{verb.positional}={_quoted(word.partition('=')[2])}")
        elif "=" in word or word.startswith("~"):
            overrides.append(word)
        elif verb.positional is None:
            raise UsageError(f"{verb.name} takes settings as key=value, but got {word}")
        elif positional is not None:
            raise UsageError(
                f"{verb.name} takes one {verb.positional}, but got {positional} and {word}"
            )
        else:
            positional = word
            overrides.append(f"{verb.positional}={_quoted(word)}")
    return show, overrides


def _quoted(value: str) -> str:
    """A value as Hydra's grammar reads it back unchanged, spaces and brackets included."""
    trailing = len(value) - len(value.rstrip("\\"))
    escaped = value.replace("\\'", "\\\\'").replace("'", "\\'") + "\\" * trailing
    return f"'{escaped}'"


def _debugging() -> bool:
    return os.environ.get("AQAA_DEBUG") == "1"


def _quiet_libraries() -> None:
    """Keep libraries' advice to their own developers from our users, unless AQAA_DEBUG=1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if _debugging():
        return
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, UserWarning):
        warnings.simplefilter("ignore", category)
    # Worker processes read these instead of our filters.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("lightning.pytorch", "lightning.fabric", "torch.distributed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)


__all__ = ["VERBS", "main"]
