"""What an earlier start found in files that are as they were then, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2

from ..contract.files import write_atomically

SETTLED_SECONDS = 2.0
"""A file that has changed so shortly before may change again, and bear the same time."""

KEPT_DAYS = 90
LIBRARIES = ("numpy", "Pillow", "simplejpeg", "tifffile", "imagecodecs")


class Known:
    """Findings (JSON values) by the state of the files that they are of.

    A cache that is damaged, of other code or cannot be written is as good as none. Of processes
    that write at once the last one's stays.
    """

    def __init__(self, kind: str, *given: object) -> None:
        """given: all that decides on a finding beside the files, and which files there are."""
        folder = _folder()
        name = hashlib.blake2b(repr(given).encode(), digest_size=16).hexdigest()
        self._path = folder / f"{kind}-{name}.json" if folder else None
        self._before = _read(self._path) if self._path else {}
        self._now: dict[str, tuple[str, Any]] = {}
        self._new = False

    def get(self, state: str | None, name: str) -> Any:
        """None for files that are not known, or not as they were. name: of their pair."""
        found = None if state is None else self._before.get(state)
        if state is not None and found is not None:
            self._now[state] = name, found
        return found

    def put(self, state: str | None, name: str, finding: Any) -> None:
        """state: of before the files were read."""
        if state is not None:
            self._now[state], self._new = (name, finding), True

    def write(self, wrong: Collection[str]) -> None:
        """Keep what was found, but for pairs that are `wrong`: those are looked at again."""
        if self._path is None:
            return
        kept = {state: found for state, (name, found) in self._now.items() if name not in wrong}
        with suppress(OSError):
            if not self._new and kept.keys() == self._before.keys():
                os.utime(self._path)  # it is in use
                return
            text = json.dumps(kept, separators=(",", ":")).encode()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, _digest(text) + b"\n" + text)
            _remove_old(self._path.parent)


def state_of(*files: Path) -> str | None:
    """Tell the files and all that changes with them; None where that is not sure."""
    now, found = time.time(), []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            return None
        if now - status.st_mtime < SETTLED_SECONDS:
            return None
        numbers = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        found.append((str(file.absolute()), *numbers))
    return json.dumps(found)


def _folder() -> Path | None:
    told = os.environ.get("XDG_CACHE_HOME", "")
    base = told if Path(told).is_absolute() else os.path.expanduser("~/.cache")  # noqa: PTH111  a Path's raises
    return Path(base, "unetrt", "checks") if Path(base).is_absolute() else None


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        digest, text = path.read_bytes().split(b"\n", 1)
        if digest == _digest(text):
            found: dict[str, Any] = json.loads(text)
            return found
    return {}


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, key=_readers(), digest_size=32).hexdigest().encode()


@cache
def _readers() -> bytes:
    """What reads files: this code, the libraries, and the processor that they choose theirs for."""
    digest = hashlib.blake2b(digest_size=32)
    own = Path(__file__).parent
    for source in sorted([*own.glob("*.py"), *own.with_name("contract").glob("*.py")]):
        digest.update(source.read_bytes())
    found = [*map(_version, LIBRARIES), cv2.__version__, cv2.getCPUFeaturesLine()]
    digest.update(repr(found).encode())
    return digest.digest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _remove_old(folder: Path) -> None:
    """Of data that was not trained on for long, and what a process that was killed left."""
    limit = time.time() - KEPT_DAYS * 24 * 3600
    for file in folder.iterdir():
        with suppress(OSError):
            if file.stat().st_mtime < limit:
                file.unlink()
