"""Memory that slots give away with their masks in it, so that nobody copies them to be written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..contract.closing import Closing
from ..contract.errors import DeviceMemoryError
from ..contract.types import U8
from ..engine.base import Engine, Memory, Slot

LEAST = 1 << 18
"""Bytes of a batch's masks below which a copy, some 50 µs, costs no more than what is done here."""

MOST = 6
"""Batches whose masks may wait to be written while slots go on; those of more are copied."""


class Loan:
    """Masks in memory that a slot has given away; it goes back once all holders have let go.

    The one who made it holds it. Any thread may let go.
    """

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back, self._holders = give_back, 1
        self._lock = threading.Lock()

    def hold(self) -> None:
        with self._lock:
            self._holders += 1

    def let_go(self) -> None:
        with self._lock:
            self._holders -= 1
            last = not self._holders
        if last:
            self._give_back()


class Outputs(Closing):
    """Memory for masks, of about most_bytes in all, which slots take for what they give away.

    wanted: who consumes masks keeps none of them. One thread lends, trims and closes.
    """

    def __init__(self, engine: Engine, most_bytes: int, wanted: bool) -> None:
        self._engine, self._most_bytes, self._wanted = engine, most_bytes, wanted
        self._lock = threading.Lock()
        self._idle: list[Memory] = []
        self._lent: list[Memory] = []
        self._made = self._largest = 0

    @contextmanager
    def lend(self, slot: Slot, masks: U8, batch: int) -> Iterator[Loan | None]:
        """What a slot's masks, (n, …) of a batch, are held by; None: they are to be copied."""
        needed = batch * masks[0].nbytes
        given = self._exchanged(slot, needed) if self._wanted and needed >= LEAST else None
        if given is None:
            yield None
            return
        self._lent.append(given)
        loan = Loan(lambda: self._put(given))
        try:
            yield loan
        finally:
            loan.let_go()

    def _exchanged(self, slot: Slot, needed: int) -> Memory | None:
        memory = self._take(needed)
        if memory is None:
            return None
        given = slot.exchange(memory)
        if given is None:  # its slots never do
            self._wanted = False
            self._idle.append(memory)
        return given

    def _take(self, needed: int) -> Memory | None:
        """Each may be as large as the largest: a slot's own grows where it is too small."""
        with self._lock:
            self._largest = max(self._largest, needed)
            while self._idle and self._made * self._largest > self._most_bytes:
                self._free()
            if self._idle:
                return self._idle.pop()
            if self._made >= MOST or (self._made + 1) * self._largest > self._most_bytes:
                return None
            self._made += 1
        memory = self._engine.memory()
        try:
            memory.view((needed,))
        except DeviceMemoryError:  # masks are copied
            self._made -= 1
            self._wanted = False
            return None
        return memory

    def _put(self, memory: Memory) -> None:
        with self._lock:
            self._lent.remove(memory)
            self._idle.append(memory)

    def _free(self) -> None:
        self._idle.pop().free()
        self._made -= 1

    def trim(self) -> None:
        """Free what is idle: memory is short."""
        with self._lock:
            while self._idle:
                self._free()
            self._largest = 0

    def close(self) -> None:
        """Free it all; twice is harmless. Nobody looks at masks any more."""
        self.trim()
        for memory in self._lent:  # of writers that never ran
            memory.free()
