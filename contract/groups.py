"""What Linux's control groups let a container, or a scheduler's job, use of a machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_GROUPS = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def group_files(kind: str, second: str, first: str) -> Iterator[Path]:
    """Of the group that this process is in and of those above it; a container's own is the root.

    kind: "memory" or "cpu". second, first: the file's name in the two versions of groups. A file
    need not be there.
    """
    groups = {"": "/", kind: "/"}
    with suppress(OSError):
        for line in _GROUPS.read_text(encoding="utf-8", errors="replace").splitlines():
            _, kinds, group = line.split(":", 2)
            groups |= dict.fromkeys(kinds.split(","), group)
    for folder, group, name in ((_ROOT, groups[""], second), (_ROOT / kind, groups[kind], first)):
        place = PurePosixPath(group)
        yield from (Path(f"{folder}{above}", name) for above in (place, *place.parents))
