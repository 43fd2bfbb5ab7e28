"""Whether heat or power held the processor back while the bench ran, where the kernel counts it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .machine import clocks_text

COUNTERS = Path("/sys/devices/system/cpu")
PATTERN = "cpu[0-9]*/thermal_throttle/*_count"
KEY, SEEN, UNSEEN = "throttled", "seen: ", "none counted"
UNREADABLE = "not readable"


class ThrottleClock:
    """From its start to `told`: what the kernel counted on any core; the clocks at the end."""

    def __init__(self) -> None:
        self._before = _counts()

    def told(self) -> dict[str, str]:
        """For the description of the machine."""
        return {"clocks after": clocks_text() or UNREADABLE, KEY: self._text()}

    def _text(self) -> str:
        now = _counts()
        if not now:
            return UNREADABLE
        grown: dict[str, int] = {}
        for path, count in now.items():
            more = count - self._before.get(path, count)
            grown[path.name] = max(grown.get(path.name, 0), more)  # a package's stands at each core
        found = ", ".join(f"{name} +{count}" for name, count in grown.items() if count)
        return SEEN + found if found else UNSEEN


def throttle_warning(machine: Mapping[str, str]) -> str:
    """What the machine's description says of it, or ''."""
    text = machine.get(KEY, "")
    if not text.startswith(SEEN):
        return ""
    return f"the processor was held back during the bench: {text.removeprefix(SEEN)}"


def _counts() -> dict[Path, int]:
    found = {}
    for path in sorted(COUNTERS.glob(PATTERN)):
        try:
            found[path] = int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return found
