"""What an image is known by between two runs: its size, and when it was written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..contract.addresses import is_address, modified_ns, store_errors

Stamp = tuple[int, int]
"""Size and time of modification (ns) that an input had just before it was read."""

GONE = (FileNotFoundError, NotADirectoryError)
"""What says that a file is not there. Any other OSError says that nobody can tell."""


def status_of(path: Path) -> os.stat_result:
    """Of a file here or at an address, in one request. OSError: GONE, or another."""
    with store_errors():
        return path.stat()


def stamp_from_status(path: Path, status: os.stat_result) -> Stamp:
    """The time is that of contract/addresses.py, else what upath makes of the store's words."""
    if not is_address(path):
        return status.st_size, status.st_mtime_ns
    told: Any = status  # a UPathStatResult
    return status.st_size, modified_ns(told.as_info()) or status.st_mtime_ns


def stamp_of(path: Path) -> Stamp:
    """OSError as of status_of."""
    return stamp_from_status(path, status_of(path))
