"""A file of JSON lines that only grows, that one process writes, and that a kill cannot spoil."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ..contract.errors import UserError
from ..contract.files import write_all
from ..contract.locks import lock_file
from ..contract.log import log

LOOK_SECONDS = 0.2
"""Between two looks, while lines are added, whether the file is still there."""

_BLOCK = 1 << 16


class JsonLines:
    """Locked while it is open; a last line that was written by half is cut off.

    Raises UserError where the file cannot be written, is in use, or holds what is no JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._look_again = 0.0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            _lock(self._file, path)
            _cut_half_line(self._file)
        except BaseException:
            self._file.close()
            raise

    def clear(self) -> None:
        self._file.truncate(0)

    def append(self, entry: dict[str, Any]) -> None:
        """Hand the line to the system: a kill of this process no longer loses it."""
        line = json.dumps(entry).encode() + b"\n"
        if time.monotonic() >= self._look_again:
            self.require_in_place()
        try:
            write_all(self._file, line)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def require_in_place(self) -> None:
        """Raise UserError where the file was removed, moved or replaced: its lines are lost."""
        try:
            if os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                self._look_again = time.monotonic() + LOOK_SECONDS
                return
            seen: object = "another file in its place"
        except OSError as error:
            seen = error
        raise UserError(
            f"cannot write {self.path}: it was there when the job began",
            seen=seen,
            expected="an output folder that stays while the job runs",
            hint="run the same command again: it makes what is not there",
        )

    def entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every line with the place where it starts."""
        return read_lines(self.path)

    def entries_at(self, starts: Iterator[int]) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            for start in starts:
                file.seek(start)
                yield json.loads(file.readline())

    def close(self) -> None:
        """A file without a line goes, with a folder that was made for it; twice is harmless."""
        if self._file.closed:
            return
        with suppress(OSError):
            if os.fstat(self._file.fileno()).st_size == 0:
                self.path.unlink()
                self.path.parent.rmdir()
        self._file.close()


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every line with the place where it starts; one that is half written is passed over.

    Without a lock: for who looks on while another process writes.
    """
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            yield start, _entry(line, number, path)
            start += len(line)


def _entry(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise damaged(path, number, error) from error
    if not isinstance(entry, dict):
        raise damaged(path, number, f"{line[:40]!r}")
    return entry


def in_use(path: Path) -> bool:
    """Whether a process has this file open as JsonLines."""
    with path.open("rb") as file:
        try:
            lock_file(file, shared=True)
        except BlockingIOError:
            return True
    return False


def damaged(path: Path, number: int, seen: object) -> UserError:
    return UserError(
        f"{path} is damaged",
        seen=f"line {number}: {seen}",
        expected="the lines that unetrt predict has written",
        hint="--restart   makes every mask again",
    )


def locked(path: Path) -> UserError:
    return UserError(
        f"another job writes below {path.parent.parent}",
        seen=f"a lock on {path}",
        expected="one job at a time, or shards of one job",
        hint="wait for it, or --output-dir DIR   with another DIR",
    )


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write {path}",
        seen=error,
        expected="a folder that takes files",
        hint="free the disk or the folder, then run again: what is done is kept",
    )


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        is_locked = lock_file(file)
    except BlockingIOError as error:
        raise locked(path) from error
    if not is_locked and sys.platform != "win32":  # where no folder has locks
        text = "no file can be locked below %s: nothing keeps a second job from it"
        log.warning(text, path.parent.parent)


def _cut_half_line(file: IO[bytes]) -> None:
    """What a kill or a full disk left after the last newline."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            file.truncate(start + found + 1)
            return
        end = start
    file.truncate(0)
