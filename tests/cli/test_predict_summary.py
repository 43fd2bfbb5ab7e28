"""unetrt predict: the summary is told, and written, whatever ends the job."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from threading import Event

import pytest

from tests.cli.conftest import CheckpointFile, Command, files_below
from unetrt.runtime import predict, work


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json", "/proc/x.json"],
        ["--json", "/dev/null"],
        ["--json", "n" * 300],
        ["--json", "n" * 300 + "/x.json"],
        ["--trace", "/proc/x.json"],
        ["--trace", "-"],
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(
    arguments: list[str], unetrt: Command, onnx_file: Path, pictures: Path, tmp_path: Path
) -> None:
    outcome = unetrt(
        "predict", "-m", onnx_file, "-i", pictures, "--output-dir", tmp_path / "out", *arguments
    )
    assert "expected: " in outcome.error
    assert not (tmp_path / "out").exists()
    assert not Path("-").exists()


def fill_up(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """The disk takes so many masks and no more."""
    real, written = work.write_atomically, 0

    def write(path: Path, data: bytes) -> None:
        nonlocal written
        written += 1
        if written > room:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(work, "write_atomically", write)


def test_what_was_done_before_the_disk_was_full_is_told(
    unetrt: Command,
    onnx_file: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (pictures / "0.png").write_text("no image")
    fill_up(monkeypatch, 2)
    report, trace, out = tmp_path / "j.json", tmp_path / "t.json", tmp_path / "out"
    asked = ("predict", "-m", onnx_file, "-i", pictures, "--output-dir", out)
    outcome = unetrt(*asked, "--json", report, "--trace", trace)
    assert outcome.status == 2
    assert "No space left" in outcome.err
    assert f"failed: {pictures / '0.png'}: " in outcome.err
    summary = json.loads(report.read_text())
    assert summary["planned"] == 5
    assert summary["planned"] == summary["done"] + summary["failed"] + summary["skipped"]
    assert (summary["failed"], len(files_below(out))) == (1, 2)
    assert summary["done"] <= 2
    assert outcome.out == (
        f"5 planned = {summary['done']} done + 1 failed + {summary['skipped']} skipped\n"
    )
    assert json.loads(trace.read_text())


def test_a_job_that_was_refused_has_no_summary(
    unetrt: Command, onnx_file: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"of somebody else")
    report = tmp_path / "j.json"
    asked = ("predict", "-m", onnx_file, "-i", pictures, "--output-dir", tmp_path / "out")
    outcome = unetrt(*asked, "--json", report)
    assert "no job of unetrt has written" in outcome.whole_error
    assert outcome.out == ""
    assert not report.exists()
    assert files_below(tmp_path / "out") == ["a.png"]


@pytest.mark.parametrize("full", [False, True])
def test_a_result_that_cannot_be_written_is_on_the_terminal(
    full: bool,
    unetrt: Command,
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its folder goes while the job runs."""
    folder = tmp_path / "reports"
    folder.mkdir()
    real = predict.run_job

    def run_job(*arguments: object, **options: object) -> object:
        shutil.rmtree(folder)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(predict, "run_job", run_job)
    if full:
        fill_up(monkeypatch, 0)
    asked = ("predict", "-m", checkpoint_file(), "-i", pictures, "--output-dir", tmp_path / "out")
    outcome = unetrt(*asked, "--json", folder / "j.json", "--trace", folder / "t.json")
    assert f"cannot write {folder}" in outcome.error
    done = 0 if full else 4
    assert outcome.out == f"4 planned = {done} done + 0 failed + {4 - done} skipped\n"
    assert ("No space left" in outcome.err) == full


def test_summary_and_timeline_are_two_files(
    unetrt: Command, onnx_file: Path, pictures: Path, tmp_path: Path
) -> None:
    asked = ("predict", "-m", onnx_file, "-i", pictures, "--output-dir", tmp_path / "out")
    other = tmp_path / "out" / ".." / "j.json"
    (tmp_path / "out").mkdir()
    outcome = unetrt(*asked, "--json", tmp_path / "j.json", "--trace", other)
    assert "--json and --trace name one file" in outcome.whole_error
    assert files_below(tmp_path / "out") == []


def test_an_interrupted_job_names_the_images_that_failed(
    unetrt: Command,
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run_job(
        crew: object, tasks: object, options: object, stop: Event, summary: predict.Summary
    ) -> None:
        summary.planned = summary.left = 4
        summary.fail(pictures / "a.png", "no image")
        stop.set()

    monkeypatch.setattr(predict, "run_job", run_job)
    asked = ("predict", "-m", checkpoint_file(), "-i", pictures, "--output-dir", tmp_path / "out")
    outcome = unetrt(*asked)
    assert outcome.status == 130
    assert f"failed: {pictures / 'a.png'}: no image\ninterrupted: 0 done, 1 failed" in outcome.err


def test_names_of_files_do_not_reach_the_terminal_as_they_are(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    bad = tmp_path / "in" / "a\x1b[2J\nb\x9b\u202eü.png"
    bad.parent.mkdir()
    bad.write_text("no image")
    outcome = unetrt("predict", "-m", checkpoint_file(), "-i", bad.parent, "-n")
    assert "failed: " in outcome.err
    assert "a\\x1b[2J\\nb\\x9b\\u202eü.png" in outcome.err
    assert not {"\x1b", "\x9b", "\u202e"} & set(outcome.err)


def test_a_new_image_beside_one_of_its_stem_needs_no_restart(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    asked = ("predict", "-m", checkpoint_file(), "-i", pictures, "--output-dir", tmp_path / "out")
    assert unetrt(*asked).status == 0
    shutil.copy(pictures / "sub" / "d.bmp", pictures / "a.bmp")
    assert unetrt(*asked).out == "5 planned = 1 done + 0 failed + 4 skipped\n"
    assert "a.bmp.png" in files_below(tmp_path / "out")
