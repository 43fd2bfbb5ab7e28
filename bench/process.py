"""One measurement in a process of its own: a job in on stdin, an answer out on the last line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..runtime.stop import END_SIGNALS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PARENT = "UNETRT_BENCH_PARENT"
"""The process that waits for this one: it may be gone before this one has looked who it is."""

PARENT_SECONDS = 1.0
"""Between two looks whether the parent is there: seldom enough to take nothing from a row."""


def answer_from_process(module: str, job: DataclassInstance, timeout: float) -> Any:
    """Run `python -m module` on the job; return its answer, or a string: the reason for none."""
    command = [sys.executable, "-m", module]
    try:
        child = run_alone(command, timeout, json.dumps(asdict(job)))
    except subprocess.TimeoutExpired:
        return f"given up after {timeout:.0f} s"
    lines = child.stdout.splitlines()
    if child.returncode or not lines:
        return f"its process ended with status {child.returncode}"
    try:
        return json.loads(lines[-1])
    except json.JSONDecodeError:
        return f"its process answered with {lines[-1][:80]!r}"


def run_alone(
    command: Sequence[str], timeout: float, text: str = "", keep_errors: bool = False
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run, in a session of its own, whose processes end with it.

    The terminal's Ctrl-C then reaches the bench alone, which ends them without their tracebacks.
    keep_errors: what it writes to stderr comes back too. Raises subprocess.TimeoutExpired.
    """
    errors: int | IO[str] | None = subprocess.PIPE if keep_errors else None
    child = None
    try:
        with _signals_held_back():
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                env={**os.environ, **_paths_as_here(), PARENT: str(os.getpid())},
            )
        out, told = child.communicate(text, timeout)
    except BaseException:
        if child is not None:
            with child:  # closes its pipes
                _end(child)
        raise
    return subprocess.CompletedProcess(command, child.returncode, out, told)


def _paths_as_here() -> dict[str, str]:
    """-m looks for modules in the working folder first, where a queue.py of the user's may lie.

    Not where this process does not either.
    """
    return {} if {"", str(Path.cwd())} & set(sys.path) else {"PYTHONSAFEPATH": "1"}


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """What comes meanwhile is answered at the end: a process half started has nobody to end it."""
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [signal.SIGINT, *END_SIGNALS]
        before = {n: signal.getsignal(n) for n in numbers if callable(signal.getsignal(n))}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def end_with_parent() -> None:
    """Watch for the end of the process that called run_alone for this one: a SIGKILL tells nobody.

    Ends this process then, and what it has started. POSIX only.
    """
    if not hasattr(os, "getpgrp") or os.getpgrp() != os.getpid():
        return  # the group is not ours alone
    parent = int(os.environ.get(PARENT) or os.getppid())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _end(child: subprocess.Popen[str]) -> None:
    """Kill it and what it has started, as torch.compile's workers."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            child.kill()
    else:
        child.kill()
    child.wait()
