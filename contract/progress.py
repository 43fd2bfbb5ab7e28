"""Progress of a long job: a bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 10.0

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
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            rate = done / (now - start)
            left = (total - done) / rate if rate else 0
            sys.stderr.write(f"{what}: {done}/{total} {unit}, {rate:.1f}/s, {left:.0f} s left\n")
            sys.stderr.flush()

    yield advance
