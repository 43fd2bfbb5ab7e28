"""How much memory loaded images may take: whoever would load one more waits until there is room."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

SHARE = 8
"""Loaded images may take this part of the memory, 1/8 of it, and masks to be written as much."""

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container says what it may use, by the second and the first version of cgroups."""

_UNKNOWN = 8 << 30


def memory_bytes() -> int:
    """The memory of this machine, or of the container that it is."""
    found = []
    for name in _LIMITS:
        with suppress(OSError, ValueError):  # "max" where there is no limit
            found.append(int(Path(name).read_text(encoding="ascii")))
    if hasattr(os, "sysconf"):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=_UNKNOWN)


class Budget:
    """Bytes that are held, by any threads, of at most `most` and what they add at once.

    Tickets are numbered in the order in which images are asked for. The one that is waited for is
    let through whatever is held: without it nothing would be given back.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._wanted = -1
        self._open = False
        self._changed = threading.Condition()

    def admit(self, ticket: int) -> None:
        """Wait until there is room, or `ticket` is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._may_pass(ticket))

    def _may_pass(self, ticket: int) -> bool:
        return self.held < self.most or ticket <= self._wanted or self._open

    def hold(self, count: int) -> None:
        with self._changed:
            self.held += count

    def give_back(self, count: int) -> None:
        with self._changed:
            self.held -= count
            self._changed.notify_all()

    def want(self, ticket: int) -> None:
        """Let through what is waited for, and what was asked for before it."""
        with self._changed:
            self._wanted = ticket
            self._changed.notify_all()

    def open(self) -> None:
        """Let everyone through: the run is over."""
        with self._changed:
            self._open = True
            self._changed.notify_all()
