"""One measurement in a process of its own: a job in on stdin, an answer out on the last line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


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
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            out, told = child.communicate(text, timeout)
        except BaseException:
            _end(child)
            raise
    return subprocess.CompletedProcess(command, child.returncode, out, told)


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
