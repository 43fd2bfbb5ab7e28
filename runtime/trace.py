"""A timeline of a job in Chrome's trace format: chrome://tracing and Perfetto open it.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from ..contract.files import atomic_path
from ..contract.log import log
from ..engine.base import Span

T = TypeVar("T")

MOST_EVENTS = 200_000
"""Spans kept, the first ones: some 15,000 images, 70 MB of memory. A longer job is cut there."""

SLOT_ROWS = 1_000_000
"""Rows of slots are numbered from here, those of threads from 1."""

DEVICE_ROWS = 2_000_000
"""Rows of what the device did for a slot, by its own clock."""


class NoTrace:
    """Notes nothing. of_device: wants to know when the device copied and computed."""

    of_device = False

    def span(self, name: str, **arguments: Any) -> AbstractContextManager[None]:
        """Note what the with block takes, in this thread."""
        del name, arguments
        return nullcontext()

    def waited(self, name: str, future: Future[T]) -> T:
        """Its result; a span only where it has to be waited for."""
        if future.done():
            return future.result()
        with self.span(name):
            return future.result()

    def note(
        self, name: str, slot: int, start: int, device: Sequence[Span] = (), **arguments: Any
    ) -> None:
        """Note a span of a slot that began at `start`, in time.perf_counter_ns(), and ends now.

        device: what the device did for it meanwhile, on a row of its own.
        """

    def write(self, path: Path) -> None:
        """Nothing."""


class Trace(NoTrace):
    """Notes spans from any thread; the first `most` are kept."""

    of_device = True

    def __init__(self, most: int = MOST_EVENTS) -> None:
        self._most = most
        self._zero = time.perf_counter_ns()
        self._spans: list[tuple[str, int, int, int, dict[str, Any]]] = []
        self._dropped = 0
        self._rows: dict[int, str] = {}
        self._local = threading.local()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    @contextmanager
    def span(self, name: str, **arguments: Any) -> Iterator[None]:
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            self._add(name, self._thread_row(), start, arguments)

    def note(
        self, name: str, slot: int, start: int, device: Sequence[Span] = (), **arguments: Any
    ) -> None:
        self._rows.setdefault(SLOT_ROWS + slot, f"slot {slot}")
        self._add(name, SLOT_ROWS + slot, start, arguments)
        for part, begin, end in device:
            self._rows.setdefault(DEVICE_ROWS + slot, f"slot {slot}, on the device")
            self._add(part, DEVICE_ROWS + slot, begin, arguments, end)

    def _add(
        self, name: str, row: int, start: int, arguments: dict[str, Any], end: int | None = None
    ) -> None:
        """end: now, where there is none."""
        ends = time.perf_counter_ns() if end is None else end
        with self._lock:
            if len(self._spans) < self._most:
                self._spans.append((name, row, start, ends, arguments))
                return
            self._dropped += 1
        if self._dropped == 1:
            log.warning("the trace is full: %d spans are kept, later ones are not", self._most)

    def _thread_row(self) -> int:
        """A row a thread: the system uses its own numbers again when a thread has ended."""
        row: int | None = getattr(self._local, "row", None)
        if row is None:
            row = self._local.row = next(self._numbers)
            self._rows[row] = threading.current_thread().name
        return row

    def events(self) -> Iterator[dict[str, Any]]:
        """The rows' names, then complete events ("X") in the order they began; microseconds."""
        pid = os.getpid()
        for row, name in sorted(self._rows.items()):
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": row, "args": {"name": name}}
        # Of two that begin together the longer one is the outer one.
        spans = sorted(self._spans, key=lambda span: (span[2], -span[3]))
        for name, row, start, end, arguments in spans:
            yield {
                "ph": "X",
                "name": name,
                "cat": _category(row),
                "pid": pid,
                "tid": row,
                "ts": (start - self._zero) / 1000,
                "dur": (end - start) / 1000,
                "args": arguments,
            }

    def write(self, path: Path) -> None:
        """A JSON array, one event a line, whole or not at all; OSError where it cannot be."""
        with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as file:
            separator = "[\n"
            for event in self.events():
                file.write(separator + json.dumps(event))
                separator = ",\n"
            file.write("\n]\n" if separator == ",\n" else "[]\n")


def _category(row: int) -> str:
    if row >= DEVICE_ROWS:
        return "device"
    return "slot" if row >= SLOT_ROWS else "thread"


NO_TRACE = NoTrace()
