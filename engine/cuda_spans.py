"""When a device copied and computed, for a timeline: timing events on a slot's stream."""

from __future__ import annotations

import time
from typing import Any

from .base import Span

PARTS = ("copy in", "compute", "copy out")


class DeviceClock:
    """A device's clock as this process's own. One for all slots, so that their spans compare.

    Use with the device current. The driver gives milliseconds as a float32: 4 µs are the smallest
    step after a minute, 60 µs after a quarter of an hour.
    """

    def __init__(self, driver: Any, stream: Any) -> None:
        stream.synchronize()
        self._zero = driver.Event().record(stream)
        self._zero.synchronize()
        self._zero_ns = time.perf_counter_ns()

    def read(self, event: Any) -> int:
        """When the device came to an event, in time.perf_counter_ns()."""
        return self._zero_ns + round(float(self._zero.time_till(event)) * 1e6)


class Laps:
    """Owns the events around the parts of one batch. Use with the device current."""

    def __init__(self, driver: Any, clock: DeviceClock) -> None:
        self._clock = clock
        self._events = [driver.Event() for _ in range(len(PARTS) + 1)]

    def mark(self, index: int, stream: Any) -> None:
        """Before part `index`, which is the end of the one before it."""
        self._events[index].record(stream)

    def spans(self) -> list[Span]:
        """Of the last batch, which must have ended."""
        times = [self._clock.read(event) for event in self._events]
        return list(zip(PARTS, times, times[1:], strict=False))
