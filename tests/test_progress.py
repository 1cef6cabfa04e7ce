"""Progress: lines with rate and remaining time, a bar on a terminal."""

import io
import re
import sys

import pytest

from aqaa import progress
from aqaa.progress import Bar, track


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_line_now_and_then_with_rate_and_remaining_time(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Bar("work", 1000, unit="steps", begun=100) as bar:
        clock.now_s += 14
        bar.update(150)
        assert not bar.due() and capsys.readouterr().out == ""
        clock.now_s += 6  # 20 s for 100 steps
        assert bar.due()
        bar.update(200, "loss 1.5")
        assert capsys.readouterr().out == "work: 200/1000 steps, 5.0/s, loss 1.5, 2:40 left\n"
        clock.now_s += 1
        bar.update(1000)
        assert capsys.readouterr().out == ""


def test_tracked_items_come_through_and_are_counted_when_done(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow() -> object:
        for item in "abc":
            clock.now_s += 20
            yield item

    assert list(track(slow(), "letters", 3, unit="letters")) == ["a", "b", "c"]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"letters: {n}/3 letters, 0.1/s, {left} left"
                     for n, left in ((1, "0:40"), (2, "0:20"), (3, "0:00"))]  # fmt: skip


@pytest.mark.parametrize(("lines", "bars"), [("", True), ("lines", False)])
def test_a_terminal_gets_a_bar_unless_lines_are_asked_for(
    lines: str, bars: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("AQAA_PROGRESS", lines)
    monkeypatch.setenv("TERM", "xterm")
    with Bar("work", 10, unit="clips") as bar:
        bar.update(10)
    said = terminal.getvalue()
    assert ("\x1b[" in said) is bars
    assert bool(re.search(r"10/10 clips", said)) is bars


def test_an_error_leaves_the_terminal_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), Bar("work", 10, unit="clips"):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        list(track((1 / n for n in (1, 0)), "work", 2, unit="clips"))
