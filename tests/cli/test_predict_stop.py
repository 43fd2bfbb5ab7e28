"""unetrt predict, stopped and started again."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import JOURNAL, CheckpointFile, Command, files_below
from tests.conftest import steel
from unetrt.contract.masks import read_mask


def many_pictures(folder: Path, count: int) -> Path:
    """One picture under many names."""
    folder.mkdir()
    Image.fromarray(steel(0, 256, 256)[..., 0]).save(folder / "0.png")
    for index in range(1, count):
        (folder / f"{index}.png").hardlink_to(folder / "0.png")
    return folder


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_job_with_whole_masks_and_the_command_that_goes_on(
    name: signal.Signals, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    images, out, report = (
        many_pictures(tmp_path / "my imgs", 2000),
        tmp_path / "out",
        tmp_path / "j",
    )
    arguments = ["predict", "-m", checkpoint_file(), "-i", images, "--output-dir", out]
    arguments += ["--json", report]
    command = [sys.executable, "-m", "unetrt.cli", *map(str, arguments)]
    job = subprocess.Popen(
        [*command, "--restart"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job that a shell runs in the background ignores the signal, its children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while job.poll() is None and not any(out.glob("*.png")):
        time.sleep(0.02)
    job.send_signal(name)
    equation, told = job.communicate(timeout=60)
    assert job.returncode == 130
    assert "Traceback" not in told
    assert f"Hint: unetrt {shlex.join(map(str, arguments))}   goes on\n" in told
    written = files_below(out)
    assert 0 < len(written) < 2000
    assert all(read_mask(out / path).shape == (256, 256) for path in written)
    journal = [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()[1:]]
    assert sorted(entry["output"] for entry in journal if "output" in entry) == written
    summary = json.loads(report.read_text())
    assert summary["done"] == len(written)
    assert summary["done"] + summary["failed"] + summary["skipped"] == 2000
    done, left = len(written), 2000 - len(written)
    assert equation == f"2000 planned = {done} done + 0 failed + {left} skipped\n"
    assert f"interrupted: {done} done, 0 failed, {left} left\n" in told


def test_a_job_whose_reader_goes_away_is_done_all_the_same(
    checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    """`unetrt predict … 2>&1 | true`, which once ended the job, with status 0."""
    images = many_pictures(tmp_path / "in", 40)
    (images / "bad.png").write_bytes(b"no image")
    job = f"{sys.executable} -m unetrt.cli predict -m {checkpoint_file()} -i {images}"
    script = f"set -o pipefail; {job} --output-dir {tmp_path / 'out'} --json {tmp_path / 'j'} 2>&1"
    done = subprocess.run(["bash", "-c", f"{script} | true"], check=False)
    assert done.returncode == 1, "one image failed"
    assert len(files_below(tmp_path / "out")) == 40
    assert json.loads((tmp_path / "j").read_text())["done"] == 40


def test_a_stopped_job_says_so_by_its_status_where_nobody_reads(
    checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    """`unetrt predict … 2>&1 | tee log` and Ctrl-C, which ends tee too."""
    images, out = many_pictures(tmp_path / "in", 2000), tmp_path / "out"
    arguments = ["predict", "-m", checkpoint_file(), "-i", images, "--output-dir", out]
    arguments += ["--json", tmp_path / "j"]
    job = subprocess.Popen(
        [sys.executable, "-m", "unetrt.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert job.stdout is not None
    while job.poll() is None and not any(out.glob("*.png")):
        time.sleep(0.02)
    job.stdout.close()
    job.send_signal(signal.SIGINT)
    assert job.wait(60) == 130
    summary = json.loads((tmp_path / "j").read_text())
    assert 0 < summary["done"] == len(files_below(out)) < 2000


def test_a_job_whose_streams_are_closed_keeps_its_journal_whole_when_it_is_stopped(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    """As a daemon has them: the journal had the number of stderr, and got the words of the stop."""
    images, out = many_pictures(tmp_path / "in", 2000), tmp_path / "out"
    arguments = ["predict", "-m", checkpoint_file(), "-i", images, "--output-dir", out]
    command = shlex.join([sys.executable, "-m", "unetrt.cli", *map(str, arguments)])
    job = subprocess.Popen(["bash", "-c", f"exec {command} <&- >&- 2>&-"])
    while job.poll() is None and not any(out.glob("*.png")):
        time.sleep(0.02)
    job.terminate()
    assert job.wait(60) == 130
    for line in (out / JOURNAL).read_text().splitlines():
        json.loads(line)
    for path in list(images.iterdir())[100:]:
        path.unlink()
    assert unetrt(*arguments).status == 0


def test_a_job_whose_terminal_is_closed_is_done_all_the_same(
    checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    """`unetrt predict … & disown`, and the window goes: what is written to it gives EIO."""
    images, out = many_pictures(tmp_path / "in", 400), tmp_path / "out"
    arguments = ["predict", "-m", checkpoint_file(), "-i", images, "--output-dir", out]
    arguments += ["--json", tmp_path / "j"]
    window, terminal = pty.openpty()
    job = subprocess.Popen(
        [sys.executable, "-m", "unetrt.cli", *map(str, arguments)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    while job.poll() is None and not any(out.glob("*.png")):
        time.sleep(0.02)
    os.close(window)
    assert job.wait(60) == 0
    assert json.loads((tmp_path / "j").read_text())["done"] == len(files_below(out)) == 400


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_on_a_full_disk_costs_no_work_and_results_there_are_an_error(
    checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    images, out = many_pictures(tmp_path / "in", 4), tmp_path / "out"
    job = f"{sys.executable} -m unetrt.cli predict -m {checkpoint_file()} -i {images}"
    script = f"{job} --output-dir {out} 2>/dev/full; echo $?; {job} -n >/dev/full; echo $?"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "4 planned = 4 done + 0 failed + 0 skipped\n0\n2\n"
    assert len(files_below(out)) == 4
    assert "No space left" in done.stderr


def test_the_same_command_goes_on_and_another_is_refused(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    asked = ("predict", "-m", checkpoint_file(), "-i", pictures, "--output-dir", tmp_path / "out")
    assert unetrt(*asked).out == "4 planned = 4 done + 0 failed + 0 skipped\n"
    (tmp_path / "out" / "b.png").unlink()
    assert unetrt(*asked).out == "4 planned = 1 done + 0 failed + 3 skipped\n"
    other = unetrt(*asked, "--format", "index").whole_error
    assert 'format "palette"' in other
    assert "--restart" in other
    again = unetrt(*asked, "--format", "index", "--restart")
    assert again.out == "4 planned = 4 done + 0 failed + 0 skipped\n"


def test_strict_ends_with_status_1_at_the_first_bad_image(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    images = many_pictures(tmp_path / "in", 60)
    (images / "00.png").write_bytes(b"no image")
    asked = ("predict", "-m", checkpoint_file(), "-i", images, "--output-dir", tmp_path / "out")
    outcome = unetrt(*asked, "--strict")
    assert outcome.status == 1
    assert outcome.out.startswith("61 planned = ")
    assert "+ 1 failed +" in outcome.out
    assert "00.png: " in outcome.err
    assert len(files_below(tmp_path / "out")) < 40


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_job_is_planned_ends_it_at_once(
    name: signal.Signals, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    """A plan of millions takes minutes, in which nothing is at stake."""
    names = tmp_path / "names"
    os.mkfifo(names)
    arguments = ["predict", "-m", checkpoint_file(), "-i", f"@{names}", "--output-dir", tmp_path]
    with (
        subprocess.Popen(
            [sys.executable, "-m", "unetrt.cli", *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as job,
        names.open("w"),
    ):  # opened once the job reads its list, and it waits for the end of it
        job.send_signal(name)
        told = job.communicate(timeout=60)[1]
    assert job.returncode == 130
    assert told == "unetrt predict: interrupted; what is written is whole\n"
