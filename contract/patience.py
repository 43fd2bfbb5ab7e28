"""How long PyTorch's threads spin while they wait for one another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

THREAD_PATIENCE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
"""For PyTorch's OpenMP. GNU's, which its Linux wheels bring, heeds the second where both are set:
a count of turns, some 100,000 in a millisecond by its own estimate."""


@contextmanager
def patient_threads() -> Iterator[None]:
    """For the first import of PyTorch: its threads are not to spin for long while they wait.

    Beside another busy process 45 images/s became 3. Spinning for a tenth of a millisecond costs
    nothing there, and not to spin at all a third of the speed where nothing else runs. It is read
    at that import alone, and not left to the processes that are started later: bench measures
    PyTorch as it comes.
    """
    given = any(name in os.environ for name in THREAD_PATIENCE)
    if not given:
        os.environ.update(THREAD_PATIENCE)
    try:
        yield
    finally:
        if not given:
            for name in THREAD_PATIENCE:
                del os.environ[name]
