"""Threads that decode and write, beside an engine that may compute on the same cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import cv2


def worker_pool(count: int, name: str) -> ThreadPoolExecutor:
    """`count` threads named `name`, which interrupt no thread that computes."""
    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=wait_for_a_core)


def wait_for_a_core() -> None:
    """Let this thread, when it wakes up, wait until a core is free or its turn has come.

    By Linux's class for batch jobs (sched(7)). Otherwise it interrupts what runs: for a network of
    width 16 in int8 on two cores that was 37 switches of threads an image in place of 11, and 3 %
    of the throughput. Another class that the process was given is left as it is.
    """
    with suppress(AttributeError, OSError):  # not Linux; not allowed in a container
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


_lock = threading.Lock()
_users, _before = 0, 0


@contextmanager
def cv2_without_threads() -> Iterator[None]:
    """Let cv2 compute in the thread that calls it, in the whole process, until the last one leaves.

    As many threads as there are cores call it. Its own spin beside them for milliseconds after each
    call, and a limit of CPU time is not seen by it: with 64 of them on two cores a pipeline that
    only decodes, resizes and encodes photographs lost a fifth.
    """
    global _users, _before
    with _lock:
        if not _users:
            _before = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                cv2.setNumThreads(_before)
