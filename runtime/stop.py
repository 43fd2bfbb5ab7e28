"""Signals: a wish that a job can follow, or where nothing is at stake the end at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
END_SIGNALS = (signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)]))
"""What ends a process that does nothing about it; Windows has no lost terminal."""

INTERRUPTED = 130
"""The exit status."""


@contextmanager
def stop_on_signals(answer: str) -> Iterator[threading.Event]:
    """Yield the event that the first signal sets; the second one ends the process at once.

    answer: said on stderr at the first one. A signal that is ignored, as in a background job,
    stays so. Outside the main thread, which alone gets signals, the event is never set.
    """
    stop = threading.Event()
    # The first process of a container gets no signal that it leaves to the system.
    last = _end_now if os.getpid() == 1 else signal.SIG_DFL

    def ask(number: int, frame: FrameType | None) -> None:
        for name in before:
            signal.signal(name, last)
        stop.set()
        with suppress(OSError):  # who read it may have gone by the same Ctrl-C, as tee does
            os.write(2, answer.encode())  # sys.stderr may be in the middle of a write

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {name: signal.getsignal(name) for name in SIGNALS}
    before = {name: handler for name, handler in before.items() if handler != signal.SIG_IGN}
    for name in before:
        signal.signal(name, ask)
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _end_now(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the with block as Ctrl-C does; what is ignored stays so."""
    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [number for number in END_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
