"""Progress where there is no terminal, also while nothing is finished; and the bar on one."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import pytest

from unetrt.contract import progress
from unetrt.contract.progress import show_progress

BAR = """
import time
from unetrt.contract.progress import show_progress
with show_progress("predict", 40) as advance:
    for _ in range(40):
        time.sleep(0.03)
        advance(1)
"""


class Told(io.StringIO):
    """Standard error, and the number of threads that were writing to it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.writers, self.most = 0, 0

    def write(self, text: str) -> int:
        self.writers += 1
        self.most = max(self.most, self.writers)
        time.sleep(0.001)
        written = super().write(text)
        self.writers -= 1
        return written

    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """sys.stderr itself is pytest's once a test runs."""
    told = Told()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=told))
    return told


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the clock that progress reads."""
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def set_clock(seconds: float) -> None:
        now[0] = seconds

    return set_clock


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end, "nothing was written"
        time.sleep(0.005)


def timers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_lines_come_while_nothing_is_finished(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    with show_progress("predict", 8) as advance:
        wait_for(lambda: len(told.lines) >= 3)
        assert set(told.lines) == {"predict: 0/8 images, 0.0/s, time left unknown"}
        advance(2)
        seen = len(told.lines)
        wait_for(lambda: len(told.lines) >= seen + 3)
        assert all(line.startswith("predict: 2/8 images, ") for line in told.lines[seen + 1 :])
        assert timers()
    assert not timers()
    seen = len(told.lines)
    time.sleep(0.1)
    assert len(told.lines) == seen, "none after the end"


def test_the_timer_ends_with_a_job_that_fails(told: Told) -> None:
    with suppress(ZeroDivisionError), show_progress("predict", 8):
        assert timers()
        raise ZeroDivisionError
    assert not timers()
    assert not told.lines


def test_rate_and_time_left_are_those_of_the_whole_job(
    told: Told, at: Callable[[float], None]
) -> None:
    with show_progress("validate", 100, "pairs") as advance:
        at(9.9)
        advance(3)
        assert not told.lines
        at(10.0)
        advance(2)
        advance(1)
        at(20.0)
        advance(4)
    assert told.lines == [
        "validate: 5/100 pairs, 0.5/s, 190 s left",
        "validate: 10/100 pairs, 0.5/s, 180 s left",
    ]


def test_caller_and_timer_write_one_line_between_them(
    told: Told, at: Callable[[float], None]
) -> None:
    """Both find the same line due, ten times."""
    lines, gate = progress._Lines("predict", 40, "images"), threading.Barrier(2, timeout=30)

    class Due(threading.Event):
        """The timer's wait: over when the gate opens, ten times."""

        left = 10

        def wait(self, timeout: float | None = None) -> bool:
            self.left -= 1
            if self.left >= 0:
                gate.wait()
            return self.left < 0

    timer = threading.Thread(target=lines.write_until, args=(Due(),))
    timer.start()
    for step in range(1, 11):
        at(10.0 * step)
        gate.wait()
        lines.advance(1)
        wait_for(lambda step=step: len(told.lines) == step)  # type: ignore[misc]
    timer.join(30)
    assert len(told.lines) == 10
    assert told.most == 1


def test_a_reader_that_goes_away_ends_the_timer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=Closed()))
    with show_progress("predict", 8):
        wait_for(lambda: not timers())
    assert not failed


def test_the_bar_on_a_terminal_shows_rate_and_time_left() -> None:
    window, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    job = subprocess.Popen([sys.executable, "-c", BAR], stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(window, 4096)
        except OSError:  # how Linux tells that nobody holds the terminal any more
            break
        if not part:
            break
        shown += part
    os.close(window)
    assert job.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"predict .* \d+/40 +\d+\.\d images/s +0:00:0\d", text)
    assert "40/40" in text
