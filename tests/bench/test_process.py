"""A row's process, and what ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from unetrt.bench.process import run_alone
from unetrt.runtime.stop import interrupted_by_signals

CODE = """
from unetrt.bench.process import run_alone
from unetrt.runtime.stop import interrupted_by_signals
with interrupted_by_signals():
    run_alone(["sh", "-c", "echo $$ >&2; exec sleep 60"], 100)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_bench_ends_its_rows(number: signal.Signals) -> None:
    """They are in a session of their own: nobody but the bench can end them."""
    command = [sys.executable, "-c", CODE]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as bench:
        assert bench.stderr is not None
        row = int(bench.stderr.readline())
        bench.send_signal(number)
        told = bench.communicate()[1]
    assert "KeyboardInterrupt" in told
    with pytest.raises(ProcessLookupError):
        os.kill(row, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_row_starts_ends_it(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row runs already and nobody holds it yet: it would outlive the bench."""
    rows = []

    class Popen(subprocess.Popen[str]):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[call-overload]
            rows.append(self)
            signal.raise_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with interrupted_by_signals(), pytest.raises(KeyboardInterrupt):
        run_alone(["sleep", "60"], 100)
    assert rows[0].returncode == -signal.SIGKILL
