"""Ctrl-C and SIGTERM, held back to a moment at which the run can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from ..contract.log import log

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, at a step's end: all that it holds is of one moment."""


class Interrupts:
    """Between enter and exit a signal sets `requested`; a second one stops at once, unsaved."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        # Python lets only the main thread handle signals; elsewhere they are its caller's.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.requested:
            raise Stopped

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        log.warning("%s: the run is saved after this step", signal.Signals(number).name)
