"""A job that is asked to stop, one that meets a full disk, and going on after each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.conftest import ThresholdEngine, write_picture
from tests.runtime.test_journal import MODEL, counts
from tests.runtime.test_predict import files_below
from unetrt.contract.errors import UserError
from unetrt.contract.types import U8
from unetrt.runtime.journal import FOLDER, NAME, JournalOptions
from unetrt.runtime.lines import JsonLines
from unetrt.runtime.pipeline import PipelineOptions
from unetrt.runtime.plan import Task, plan_tasks
from unetrt.runtime.predict import PredictOptions, predict_masks
from unetrt.runtime.stop import stop_on_signals

SERIAL = PipelineOptions(batch=1, slots=1, load_threads=1, write_threads=1)


def planned(root: Path) -> list[Task]:
    return plan_tasks([str(root / "in")], output_dir=root / "out")


def options_of(root: Path, strict: bool = False) -> PredictOptions:
    journal = JournalOptions(output_dir=root / "out", model=MODEL)
    return PredictOptions(strict=strict, journal=journal, pipeline=SERIAL)


def write_noise(folder: Path, count: int) -> list[Path]:
    """Pictures in two folders; a mask takes a disk block or more."""
    rng = np.random.default_rng(0)
    return [
        write_picture(
            folder / f"d{index % 2}" / f"{index:03}.png",
            rng.integers(0, 254, (16, 16, 1)).astype(np.uint8),
        )
        for index in range(count)
    ]


def journaled(root: Path) -> list[str]:
    lines = (root / "out" / FOLDER / NAME).read_text().splitlines()[1:]
    return sorted(e["output"] for e in map(json.loads, lines) if e.get("status") == "done")


def masks_below(root: Path) -> list[str]:
    return [name for name in files_below(root / "out") if not name.startswith(FOLDER)]


def test_a_job_that_is_asked_to_stop_finishes_what_is_in_flight_and_goes_on_later(
    tmp_path: Path,
) -> None:
    write_noise(tmp_path / "in", 40)
    stop, seen = threading.Event(), 0

    def look(task: Task, mask: U8) -> None:
        nonlocal seen
        seen += 1
        if seen == 5:
            stop.set()

    with ThresholdEngine() as engine:
        summary = predict_masks(engine, planned(tmp_path), options_of(tmp_path), look, stop)
        assert 5 <= summary.done < 20
        assert counts(summary) == (summary.done, 0, summary.left)
        assert summary.left == 40 - summary.done
        assert journaled(tmp_path) == masks_below(tmp_path)
        assert len(journaled(tmp_path)) == summary.done
        again = predict_masks(engine, planned(tmp_path), options_of(tmp_path))
        assert counts(again) == (40 - summary.done, 0, summary.done)
        assert again.left == 0


def test_a_job_that_was_stopped_before_it_began_does_nothing(tmp_path: Path) -> None:
    write_noise(tmp_path / "in", 3)
    stop = threading.Event()
    stop.set()
    with ThresholdEngine() as engine:
        summary = predict_masks(engine, planned(tmp_path), options_of(tmp_path), None, stop)
    assert (counts(summary), summary.left) == ((0, 0, 3), 3)


def test_strict_stops_at_the_first_image_that_fails(tmp_path: Path) -> None:
    sources = write_noise(tmp_path / "in", 60)
    first, second = planned(tmp_path)[10].source, planned(tmp_path)[40].source
    assert {first, second} <= set(sources)
    first.write_bytes(b"")
    second.write_bytes(b"")
    with ThresholdEngine() as engine:
        summary = predict_masks(engine, planned(tmp_path), options_of(tmp_path, strict=True))
        assert [failure["input"] for failure in summary.failures] == [str(first)]
        assert summary.done <= 10
        assert counts(summary) == (summary.done, 1, 59 - summary.done)
        rest = predict_masks(engine, planned(tmp_path), options_of(tmp_path))
        assert counts(rest) == (58 - summary.done, 2, summary.done)


def test_an_image_that_vanishes_while_the_job_runs_is_that_images_failure(tmp_path: Path) -> None:
    write_noise(tmp_path / "in", 30)
    victim = planned(tmp_path)[25].source

    def look(task: Task, mask: U8) -> None:
        victim.unlink(missing_ok=True)

    with ThresholdEngine() as engine:
        summary = predict_masks(engine, planned(tmp_path), options_of(tmp_path), look)
    assert counts(summary) == (29, 1, 0)
    assert "no such file" in summary.failures[0]["reason"]


def test_folders_links_to_nothing_and_pipes_are_failures_of_their_own(tmp_path: Path) -> None:
    (good,) = write_noise(tmp_path / "in", 1)
    folder, link, pipe = (tmp_path / "in" / f"{name}.png" for name in ("dir", "link", "pipe"))
    folder.mkdir()
    link.symlink_to(tmp_path / "nothing")
    os.mkfifo(pipe)
    tasks = [Task(p, tmp_path / "out" / p.name) for p in (folder, link, pipe, good)]
    with ThresholdEngine() as engine:
        summary = predict_masks(engine, tasks, options_of(tmp_path))
    assert counts(summary) == (1, 3, 0)
    reasons = {Path(f["input"]).stem: f["reason"] for f in summary.failures}
    assert "a folder" in reasons["dir"]
    assert "no such file" in reasons["link"]
    assert "a pipe" in reasons["pipe"]


def test_an_output_folder_that_is_removed_is_one_error_and_the_next_run_makes_it_again(
    tmp_path: Path,
) -> None:
    write_noise(tmp_path / "in", 30)
    out, seen = tmp_path / "out", 0

    def look(task: Task, mask: U8) -> None:
        nonlocal seen
        seen += 1
        if seen == 10:
            shutil.rmtree(out / "d1")

    with ThresholdEngine() as engine:
        with pytest.raises(UserError, match="cannot write"):
            predict_masks(engine, planned(tmp_path), options_of(tmp_path), look)
        predict_masks(engine, planned(tmp_path), options_of(tmp_path))
        assert len(masks_below(tmp_path)) == 30
        seen = 0
        out.rename(tmp_path / "moved")
        whole = files_below(tmp_path / "moved")
        summary = predict_masks(engine, planned(tmp_path), options_of(tmp_path))
        assert counts(summary) == (30, 0, 0)
    assert files_below(out) == whole


def test_a_journal_that_is_gone_is_found_within_a_moment_and_at_the_end(tmp_path: Path) -> None:
    """Not at each line: a look is two calls, and each one waits for the interpreter."""
    path = tmp_path / ".unetrt" / "journal.jsonl"
    lines = JsonLines(path)
    lines.append({"line": 1})
    path.unlink()
    with pytest.raises(UserError, match="it was there when the job began"):
        lines.require_in_place()

    def add_for_a_minute() -> None:
        begun = time.monotonic()
        while time.monotonic() - begun < 60:
            lines.append({"line": 2})

    with pytest.raises(UserError, match="it was there when the job began"):
        add_for_a_minute()
    lines.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, where this process may mount one."""
    folder = tmp_path / "out"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_error_and_the_job_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    write_noise(tmp_path / "in", 30)
    with ThresholdEngine() as engine:
        with pytest.raises(UserError, match="cannot write") as caught:
            predict_masks(engine, planned(tmp_path), options_of(tmp_path))
        assert "No space left" in str(caught.value)
        done = journaled(tmp_path)
        assert set(done) <= set(masks_below(tmp_path))
        assert 0 < len(done) < 30
        resize = ["mount", "-o", "remount,size=1m", str(small_disk)]
        subprocess.run(resize, check=True)
        again = predict_masks(engine, planned(tmp_path), options_of(tmp_path))
    assert counts(again) == (30 - len(done), 0, len(done))
    assert journaled(tmp_path) == masks_below(tmp_path)


def test_an_output_that_may_not_be_written_is_one_error(small_disk: Path, tmp_path: Path) -> None:
    """Mounted read-only: root passes over the rights of files."""
    write_noise(tmp_path / "in", 3)
    with ThresholdEngine() as engine:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        with pytest.raises(UserError, match="cannot write") as caught:
            predict_masks(engine, planned(tmp_path), options_of(tmp_path))
        assert "Read-only" in str(caught.value)
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        assert counts(predict_masks(engine, planned(tmp_path), options_of(tmp_path))) == (3, 0, 0)


def test_a_journal_that_takes_no_more_is_one_error_and_keeps_whole_lines(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the journal alone reaches it."""
    resource = pytest.importorskip("resource", reason="Windows has none")
    write_noise(tmp_path / "in", 30)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ThresholdEngine() as engine:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
        try:
            with pytest.raises(UserError, match=NAME):
                predict_masks(engine, planned(tmp_path), options_of(tmp_path))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (tmp_path / "out" / FOLDER / NAME).stat().st_size == 6000
        again = predict_masks(engine, planned(tmp_path), options_of(tmp_path))
        assert again.done + again.skipped == 30
        assert 0 < again.skipped < 30
    assert journaled(tmp_path) == masks_below(tmp_path)


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_wish_and_the_handlers_come_back(
    name: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(name)
    with stop_on_signals("finishing\n") as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), name)
        assert stop.wait(5)
        assert signal.getsignal(name) == signal.SIG_DFL, "the second one ends at once"
    assert signal.getsignal(name) == before
    assert capfd.readouterr().err == "finishing\n"


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals("") as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_not_signalled() -> None:
    stopped: list[bool] = []

    def run() -> None:
        with stop_on_signals("") as stop:
            stopped.append(stop.is_set())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert stopped == [False]


TWICE = """
import time
from unetrt.runtime.stop import stop_on_signals
with stop_on_signals('once\\n'):
    print('ready', flush=True)
    end = time.monotonic() + 90
    while time.monotonic() < end: time.sleep(0.01)
"""


def test_the_second_signal_ends_the_process_at_once() -> None:
    command = [sys.executable, "-c", TWICE]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as job:  # type: ignore[call-overload]
        assert job.stdout.readline() == b"ready\n"
        job.send_signal(signal.SIGTERM)
        assert job.stderr.readline() == b"once\n"
        assert job.poll() is None
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == -signal.SIGTERM


@pytest.fixture
def first_process() -> list[str]:
    """What makes a command the first process of a namespace, where this process may make one."""
    words = ["unshare", "--pid", "--fork", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"]).returncode:
        pytest.skip("this process may not make a namespace of processes")
    return words


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_first_process_of_a_container_too(
    name: signal.Signals, first_process: list[str]
) -> None:
    """The system gives such a process no signal that it has no handler for."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*first_process, sys.executable, "-c", TWICE]
    with subprocess.Popen(command, **pipes) as job:  # type: ignore[call-overload]
        assert job.stdout.readline() == b"ready\n"
        (inner,) = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(inner), name)
        assert job.stderr.readline() == b"once\n"
        assert job.poll() is None
        os.kill(int(inner), name)
        assert job.wait(30) == 130
