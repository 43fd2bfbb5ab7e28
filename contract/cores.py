"""How many cores this process may keep busy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .groups import group_files


def usable_cores() -> int:
    """Those that the process may run on, or as many as its container's share of time fills."""
    return min([_allowed_cores(), *_quotas()])


def granted_threads() -> int | None:
    """How many threads should compute; None where libraries count the cores rightly themselves.

    They see all cores of a machine of which a container may have a share of the time. With a thread
    on each the share is used up early in every tenth of a second, and all wait for the next.
    """
    cores = usable_cores()
    return cores if cores < _allowed_cores() else None


def _allowed_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas() -> Iterator[int]:
    """Cores that limits of time amount to, begun ones as whole."""
    for path in group_files("cpu", "cpu.max", "cpu.cfs_quota_us"):
        with suppress(OSError, ValueError, ZeroDivisionError):  # "max" where there is no limit
            quota, period = _quota(path)
            if quota > 0:  # -1: none
                yield max(1, -(-quota // period))


def _quota(path: Path) -> tuple[int, int]:
    """Microseconds of each period of so many, as both versions of groups write them."""
    text = path.read_text(encoding="ascii")
    if path.name == "cpu.cfs_quota_us":
        text += path.with_name("cpu.cfs_period_us").read_text(encoding="ascii")
    quota, period = text.split()
    return int(quota), int(period)
