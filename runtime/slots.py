"""A job's slots: those that are free, and new ones where the buffers of the old are too large."""

from __future__ import annotations

from contextlib import ExitStack

from ..contract.closing import Closing
from ..contract.errors import DeviceMemoryError
from ..contract.log import log
from ..engine.base import Engine, Slot
from .fit import Fit


class Slots(Closing):
    """fit.count slots of an engine, fewer where the device has no memory for them.

    too_large: their buffers are, and none is free until they are renewed. DeviceMemoryError where
    there is no memory for the first one.
    """

    def __init__(self, engine: Engine, fit: Fit) -> None:
        self._engine, self._fit = engine, fit
        self._all: list[Slot] = []
        self._free: list[Slot] = []
        self.too_large = False
        self.fill()

    @property
    def count(self) -> int:
        return len(self._all)

    @property
    def none_free(self) -> bool:
        return self.too_large or not self._free

    def take(self) -> tuple[Slot, int]:
        """One that is free, and its number."""
        slot = self._free.pop()
        return slot, self._all.index(slot)

    def give_back(self, slot: Slot) -> None:
        self._free.append(slot)

    def renew(self) -> None:
        """New ones for those that are too large: buffers do not shrink. Nothing is in flight."""
        self.close()
        self.fill()

    def fill(self) -> None:
        """As many as the fit allows by now."""
        try:
            while len(self._all) < self._fit.count:
                self._all.append(self._engine.slot())
                self._free.append(self._all[-1])
        except DeviceMemoryError as error:
            if not self._all:
                raise
            self._fit.count = len(self._all)
            log.warning("%s: from now on %d slots", error.reason, self._fit.count)

    def close(self) -> None:
        """Free them all, also when one fails; twice is harmless."""
        with ExitStack() as stack:
            for slot in self._all:
                stack.callback(slot.close)
            self._all, self._free, self.too_large = [], [], False
