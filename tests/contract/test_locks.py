"""Locks: one process writes, or several read; a machine without locks goes on without."""

from __future__ import annotations

import errno
import sys
import threading
from pathlib import Path

import pytest

from unetrt.contract.locks import lock_file

here = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")


@here
def test_a_lock_is_one_files_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as first, path.open() as second:
        assert lock_file(first)
        for shared in (False, True):
            with pytest.raises(BlockingIOError):
                lock_file(second, shared=shared)
        first.close()
        assert lock_file(second, shared=True)
        with path.open() as third:
            assert lock_file(third, shared=True)


@here
def test_who_waits_gets_it_when_the_other_is_done(tmp_path: Path) -> None:
    path, got = tmp_path / "lock", threading.Event()

    def wait() -> None:
        with path.open() as second:
            assert lock_file(second, wait=True)
            got.set()

    with path.open("w") as first:
        lock_file(first)
        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.wait(0.1)
    thread.join()
    assert got.is_set()


@here
def test_a_file_system_without_locks_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with (tmp_path / "lock").open("w") as file:
        assert not lock_file(file)


def test_windows_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with (tmp_path / "lock").open("w") as file:
        assert not lock_file(file)
