"""One measurement in a process of its own: a job in on stdin, an answer out on the last line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def answer_from_process(module: str, job: DataclassInstance, timeout: float) -> Any:
    """Run `python -m module` on the job; return its answer, or a string: the reason for none."""
    try:
        child = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(asdict(job)),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return f"given up after {timeout:.0f} s"
    lines = child.stdout.splitlines()
    if child.returncode or not lines:
        return f"its process ended with status {child.returncode}"
    return json.loads(lines[-1])
