"""A rename that a power cut leaves done or not begun."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def replace_durably(new: Path, target: Path) -> None:
    """A file system may keep the rename before it has the bytes of the file that is renamed."""
    _sync(new, os.O_RDWR)
    new.replace(target)
    with suppress(OSError):  # Windows opens no folder, some network file systems sync none
        _sync(target.parent, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
