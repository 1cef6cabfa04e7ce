"""What still acts where C code keeps Python from running at all: timers of the C library.

Letters: none; no tensors here.
"""

import ctypes
import faulthandler
import sys
from typing import Any

_MONOTONIC, _NEW_THREAD = 1, 2  # CLOCK_MONOTONIC, SIGEV_THREAD
_LINE_BYTES = 500


class _Event(ctypes.Structure):
    """struct sigevent of glibc on 64 bits."""

    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_char * 32),
    ]


class _Times(ctypes.Structure):
    """struct itimerspec: the interval, then when, in seconds and nanoseconds."""

    _fields_ = [(n, ctypes.c_long) for n in ("every_s", "every_ns", "after_s", "after_ns")]


class LastResort:
    """Unless put off in time: every thread's Python stack and a line on stderr, and the end.

    Where the C library has no such timers (not Linux) stacks alone, and exit code 1.

    Args:
        code: exit code of the process.
    """

    def __init__(self, *, code: int) -> None:
        self._line = ctypes.create_string_buffer(_LINE_BYTES)
        self._timers: list[ctypes.c_void_p] = []
        if sys.platform == "linux":
            self._c = ctypes.CDLL(None)
            self._timers = [
                self._timer(self._c.warnx, ctypes.addressof(self._line)),
                self._timer(self._c._exit, code),
            ]

    def _timer(self, function: Any, value: int) -> ctypes.c_void_p:
        """A timer that calls a C function of one argument, in a thread without Python."""
        address = ctypes.cast(function, ctypes.c_void_p).value
        event = _Event(value=value, notify=_NEW_THREAD, function=address)
        timer = ctypes.c_void_p()
        if self._c.timer_create(_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
            raise OSError("timer_create failed")
        return timer

    def put_off(self, after_s: float, line: str) -> None:
        """Not before so many seconds from now, and then with this line."""
        seconds = max(1, round(after_s))
        self._line.value = line.replace("%", "").encode()[: _LINE_BYTES - 1]  # a format in C
        faulthandler.dump_traceback_later(seconds, exit=not self._timers)
        for number, timer in enumerate(self._timers):  # the line, then the end
            times = _Times(after_s=seconds + 2 * number)
            self._c.timer_settime(timer, 0, ctypes.byref(times), None)

    def cancel(self) -> None:
        """Never."""
        faulthandler.cancel_dump_traceback_later()
        for timer in self._timers:
            self._c.timer_delete(timer)
        self._timers = []
