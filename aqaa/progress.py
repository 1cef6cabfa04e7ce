"""How far long work is: a bar on a terminal, else a line now and then; rate and remaining time."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0
_REFRESH_EVERY_S = 0.1
Item = TypeVar("Item")


class Bar:
    """Shows one piece of work on standard output, as lines where AQAA_PROGRESS=lines.

    Args:
        name: of the work.
        total: how many items there are.
        unit: what an item is called, in the plural.
        begun: how many were done before, by an earlier run.
    """

    def __init__(self, name: str, total: int, *, unit: str, begun: int = 0) -> None:
        self._name = name
        self._total = total
        self._unit = unit
        self._begun = begun
        self._begun_at_s = self._shown_at_s = time.monotonic()
        self._bar: Progress | None = None
        if sys.stdout.isatty() and os.environ.get("AQAA_PROGRESS") != "lines":
            columns = (TextColumn("{task.description}"), BarColumn())
            more = (TextColumn("{task.fields[note]}"), TimeRemainingColumn())
            # Refreshed by hand: a refresh thread must not hold a lock while processes are forked.
            self._bar = Progress(*columns, *more, auto_refresh=False)
            self._task = self._bar.add_task(name, total=total, completed=begun, note="")
            self._bar.start()

    def due(self) -> bool:
        """Whether it is time to show something; saves the making of a note nobody sees."""
        wait_s = LINE_EVERY_S if self._bar is None else _REFRESH_EVERY_S
        return time.monotonic() - self._shown_at_s >= wait_s

    def update(self, done: int, note: str = "") -> None:
        """Say that ``done`` items are done in all; shown when it is due, and at the end."""
        if not self.due() and not (self._bar is not None and done >= self._total):
            return
        now = self._shown_at_s = time.monotonic()
        rate = (done - self._begun) / max(1e-9, now - self._begun_at_s)
        said = f"{done}/{self._total} {self._unit}, {rate:.1f}/s{f', {note}' if note else ''}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=said, refresh=True)
            return
        left_s = int((self._total - done) / max(1e-9, rate))
        print(f"{self._name}: {said}, {left_s // 60}:{left_s % 60:02d} left", flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def track(items: Iterable[Item], name: str, total: int, *, unit: str) -> Iterator[Item]:
    """The items, one by one, shown as they are done."""
    with Bar(name, total, unit=unit) as bar:
        for done, item in enumerate(items, start=1):
            yield item
            bar.update(done)
