"""How much memory loaded images may take: whoever would load one more waits until there is room."""

from __future__ import annotations

import threading

SHARE = 8
"""Loaded images may take this part of the memory, 1/8 of it, masks to be written as much, and pages
that images are loaded on and memory that slots give away with their masks, idle or not, as much."""

NETWORK = 4
"""The network may take so many times that, half of the memory, for the batches that it computes."""


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
