"""Ctrl-C, SIGTERM and a lost terminal, held back to a moment at which the run can be saved."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from types import FrameType

from ..contract.log import log

SIGHUP: int | None = getattr(signal, "SIGHUP", None)
"""Sent when the terminal is lost, as with a broken ssh; Windows has none."""


SAME_SECONDS = 2.0
"""In these a signal to a whole group comes again: torchrun and timeout pass on what they get."""


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, at a step's end: all that it holds is of one moment."""


class Interrupts:
    """Between enter and exit a signal sets `requested`; a later one stops at once, unsaved."""

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        # Python lets only the main thread handle signals; elsewhere they are its caller's.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _signals()}
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
            if time.monotonic() - self._since > SAME_SECONDS:
                raise KeyboardInterrupt
            return
        self.requested, self._since = True, time.monotonic()
        if number == SIGHUP:
            _leave_terminal()
        log.warning("%s: the run is saved after this step", signal.Signals(number).name)


def _signals() -> list[int]:
    """What is ignored stays so: under nohup the terminal, in a background job Ctrl-C."""
    names = (signal.SIGINT, signal.SIGTERM, SIGHUP)
    found = [name for name in names if name is not None]
    return [name for name in found if signal.getsignal(name) is not signal.SIG_IGN]


def _leave_terminal() -> None:
    """Swallow what is written to a terminal that is gone: an error there would cost the saving."""
    for number in (1, 2):
        if stat.S_ISCHR(os.fstat(number).st_mode):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
