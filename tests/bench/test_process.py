"""A row's process, and what ends it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.bench.test_fair import is_running
from unetrt.bench import peak, row, sweep
from unetrt.bench.process import run_alone
from unetrt.runtime.stop import interrupted_by_signals

THREADS = """
import threading
from unetrt.bench.process import end_with_parent
end_with_parent()
print(threading.active_count())
"""
CODE = """
from unetrt.bench.process import run_alone
from unetrt.runtime.stop import interrupted_by_signals
with interrupted_by_signals():
    run_alone(["sh", "-c", "echo $$ >&2; exec sleep 60"], 100)
"""


ROW = """
import os, subprocess, sys, time
from unetrt.bench.process import end_with_parent
if not {late}:
    end_with_parent()
parent = os.getppid()
other = subprocess.Popen(["sleep", "60"])
sys.stderr.write(f"{{other.pid}}\\n")
while {late} and os.getppid() == parent:  # as one that still imports when its bench is killed
    time.sleep(0.01)
end_with_parent()
time.sleep(60)
"""
BENCH = """
import sys
from unetrt.bench.process import run_alone
run_alone([sys.executable, "-c", {row!r}], 100)
"""

WHOSE = """
import sys
from unetrt.bench.process import run_alone
print(run_alone([sys.executable, "-c", "import queue; print(queue.__file__)"], 100).stdout)
"""


def test_a_row_imports_nothing_of_the_working_folder_that_its_bench_does_not(
    tmp_path: Path,
) -> None:
    """`unetrt bench` where the user keeps a queue.py: predict ran there, and every row failed."""
    work, script = tmp_path / "work", tmp_path / "script.py"
    work.mkdir()
    (work / "queue.py").touch()
    script.write_text(WHOSE)
    for command in ([str(script)], ["-c", WHOSE]):
        done = subprocess.run(
            [sys.executable, *command], cwd=work, capture_output=True, text=True, check=True
        )
        assert (str(work) in done.stdout) == (command[0] == "-c")


@pytest.mark.parametrize("late", [False, True])
def test_a_bench_that_is_killed_takes_its_row_along(late: bool) -> None:
    """SIGKILL can be answered by nobody: the row itself looks for its parent."""
    command = [sys.executable, "-c", BENCH.format(row=ROW.format(late=late))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as bench:
        assert bench.stderr is not None
        other = int(bench.stderr.readline())
        assert is_running(other)
        bench.kill()
    end = time.monotonic() + 20
    while is_running(other) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(other), "what the row has started is of its group"


@pytest.mark.parametrize("module", [row, sweep, peak])
def test_every_measurement_watches_for_it_first(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "end_with_parent", watched)
    monkeypatch.setattr(sys, "stdin", io.StringIO("no job"))
    with pytest.raises(KeyboardInterrupt):
        module.main()


def test_a_group_that_is_not_its_own_is_left_alone() -> None:
    command = [sys.executable, "-c", THREADS]
    alone = subprocess.run(command, capture_output=True, text=True, check=True)
    own = subprocess.run(
        command, capture_output=True, text=True, check=True, start_new_session=True
    )
    assert (alone.stdout, own.stdout) == ("1\n", "2\n")


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
