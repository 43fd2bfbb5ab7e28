"""Progress of a long job: a bar on a terminal, a plain line every ten seconds elsewhere.

The line comes also where no item is finished: slow ones, a stalled disk, a network that compiles.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 10.0
"""0: a line an item, and none between."""

Advance = Callable[[int], None]
"""Call with the number of items that were finished since the last call."""


@contextmanager
def show_progress(what: str, total: int, unit: str = "images") -> Iterator[Advance]:
    """Yield the function that counts; all output goes to stderr."""
    with _bar(what, total, unit) if sys.stderr.isatty() else _lines(what, total, unit) as advance:
        yield advance


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    start, done = time.monotonic(), 0
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, rate="")

        def advance(count: int) -> None:
            nonlocal done
            done += count
            rate = done / max(time.monotonic() - start, 1e-9)
            progress.update(task, advance=count, rate=f"{rate:.1f} {unit}/s")

        yield advance


@contextmanager
def _lines(what: str, total: int, unit: str) -> Iterator[Advance]:
    lines, ended = _Lines(what, total, unit), threading.Event()
    timer = threading.Thread(target=lines.write_until, args=(ended,), name="progress", daemon=True)
    if LINE_SECONDS > 0:
        timer.start()
    try:
        yield lines.advance
    finally:
        ended.set()
        if timer.ident is not None:
            timer.join()


class _Lines:
    """Who finds a line due writes it: the caller that counts or, while that waits, the timer."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._start = self._last = time.monotonic()
        self._done = 0
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._write_if_due()

    def write_until(self, ended: threading.Event) -> None:
        while not ended.wait(max(0.0, self._last + LINE_SECONDS - time.monotonic())):
            try:
                with self._lock:
                    self._write_if_due()
            except (OSError, ValueError):  # nobody reads any more: the caller sees it by itself
                return

    def _write_if_due(self) -> None:
        now = time.monotonic()
        if now - self._last < LINE_SECONDS:
            return
        self._last = now
        rate = self._done / max(now - self._start, 1e-9)
        left = f"{(self._total - self._done) / rate:.0f} s left" if rate else "time left unknown"
        head = f"{self._what}: {self._done}/{self._total} {self._unit}"
        sys.stderr.write(f"{head}, {rate:.1f}/s, {left}\n")
        sys.stderr.flush()
