"""One thread that writes what a step has left behind, while the next steps go on."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aqaa.errors import UsageError

_PATIENCE_S = 1800.0


class Writer:
    """Writes one thing at a time; an error of the thread is raised where it is asked for."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None
        self._path = Path()
        self._given_up = threading.Event()

    def begin(self, path: Path, write: Callable[[], None]) -> None:
        """Start ``write``, which makes ``path``; what was started before is over by then."""
        self.wait()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="aqaa-writer")
        self._path = path
        self._running = self._pool.submit(write)

    def problem(self, *, wait: bool) -> UsageError | None:
        """What :meth:`wait` raises, if there is anything by now, or, with ``wait``, at last."""
        try:
            if self._running is not None and (wait or self._running.done()):
                self.wait()
        except UsageError as error:
            return error
        return None

    def give_up(self) -> None:
        """Wait for no other rank's lines any more."""
        self._given_up.set()

    def wait(self) -> None:
        """Wait until what was started is on the disk.

        Raises:
            UsageError: it could not be written; what was there before is still there.
        """
        if self._running is None:
            return
        try:
            self._running.result()
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(
                f"cannot write {self._path}: {reason}; make room and run the same command again, "
                f"it goes on from the state saved before"
            ) from error
        finally:
            if self._running.done():
                self._running = None

    def close(self) -> None:
        """Let what was started come to its end, and the thread; errors were told or are lost."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = self._running = None

    def await_told(self, folder: Path, count: int) -> list[Any]:
        """What ``count`` ranks told of their shards in a folder all write to; it is then removed.

        Raises:
            OSError: a rank has left a mark that it cannot write, or did not come in half an hour.
        """
        until = time.monotonic() + _PATIENCE_S
        while len(found := sorted(folder.glob("shard_*.json"))) < count:
            failed = sorted(path.stem for path in folder.glob("shard_*.failed"))
            if failed or self._given_up.is_set():
                raise OSError(f"{failed[0] if failed else 'a shard'} was not written by its rank")
            if time.monotonic() > until:
                raise TimeoutError(f"only {len(found)} of {count} ranks have written their shard")
            time.sleep(0.02)
        told = []
        for path in found:
            told.append(json.loads(path.read_text(encoding="utf-8")))
            path.unlink()
        return told
