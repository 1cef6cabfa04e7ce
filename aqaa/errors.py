"""How a command ends early: the one error of use, and the stop that asks to be run again."""

from typing import ClassVar


class UsageError(ValueError):
    """Input, a file or an option is unusable; the command line prints it alone and exits with 2."""

    code: ClassVar[int] = 2


class NotANumber(UsageError):
    """A loss or gradient is NaN or Inf: told alike, but a GPU may be at fault, hence 65."""

    code = 65  # sysexits' "data error"


class RunAgain(KeyboardInterrupt):
    """A cluster asked for a stop (SIGUSR1, SIGTERM) and what a resume needs is on the disk.

    The command line exits with 75, sysexits' "try again": the same command goes on from there.
    """
