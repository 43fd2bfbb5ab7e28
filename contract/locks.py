"""A lock on an open file, which goes with the process, however it ends."""

from __future__ import annotations

import sys
from typing import IO, Any


def lock_file(file: IO[Any], *, shared: bool = False, wait: bool = False) -> bool:
    """Lock it until it is closed; False where there are no locks.

    These are missing on Windows and in some network file systems. Raises BlockingIOError where
    another process has the lock, unless this one is to wait for it.
    """
    if sys.platform == "win32":
        return False
    import fcntl

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
