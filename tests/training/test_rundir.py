"""A run's folder: one run in it at a time, and a metrics.csv that was damaged."""

from __future__ import annotations

import csv
import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from unetrt.contract.errors import UserError
from unetrt.training.checkpoint import read_checkpoint, write_checkpoint
from unetrt.training.options import TrainOptions
from unetrt.training.report import Reporter
from unetrt.training.rundir import LOCK, RunFolder
from unetrt.training.samples import load_training_data
from unetrt.training.train import train

ROW = {"epoch": 1, "step": 3, "loss": 0.5, "learning_rate": 0.1, "foreground_miou": None}


def test_two_runs_without_a_name_never_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have chosen theirs before the first one is made."""
    monkeypatch.chdir(tmp_path)
    with RunFolder(None) as one, RunFolder(None) as two:
        for folder in (one, two):
            folder.create()
        assert [one.path, two.path] == [Path("runs/train"), Path("runs/train-2")]


def test_a_named_folder_takes_one_process_at_a_time(tmp_path: Path) -> None:
    """Also where the other one is through before this one has read its data."""
    with RunFolder(tmp_path / "run") as one, RunFolder(tmp_path / "run") as two:
        one.create()
        with pytest.raises(UserError, match="another process writes the run in"):
            two.create()
        one.best.write_bytes(b"")
        one.close()
        assert not (one.path / LOCK).exists()
        with pytest.raises(UserError, match="holds the checkpoints of another run"):
            two.create()


def test_a_run_that_is_resumed_twice_at_once_is_refused(quick_options: TrainOptions) -> None:
    """Before its state is read; what a process that was killed leaves holds nothing."""
    folder = train(quick_options).parent
    with RunFolder(folder, resumed=True) as other:
        other.lock()
        with pytest.raises(UserError, match="another process writes the run in"):
            train(TrainOptions(resume=folder))
    (folder / LOCK).touch()
    assert train(TrainOptions(resume=folder / "last.pth")) == folder / "best.pth"
    assert not (folder / LOCK).exists()


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda text: text + "\0" * 200, "12"),
        (lambda text: text + "\0" * 200_000 + "\n", "12"),
        (lambda text: text[:-9], "1"),
        (lambda text: text.replace(",", ";"), ""),
        (lambda text: text.replace("0.5", "half", 1), "2"),
    ],
)
def test_lines_that_cannot_be_read_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object, left: str
) -> None:
    with RunFolder(tmp_path / "run", resumed=True) as folder:
        folder.create()
        for epoch in (1, 2):
            folder.append_metrics(ROW | {"epoch": epoch})
        assert callable(damage)
        text = damage(folder.metrics.read_text())
        folder.metrics.write_text(text)
        folder.draw()
        assert folder.curve.exists() == bool(left)
        folder.create(epochs=2)
        assert [row["epoch"] for row in folder.read_metrics()] == [*left]
        assert folder.path.joinpath("metrics.csv.damaged").read_text() == text
    assert "lines of" in caplog.text
    assert "cannot be read and are left out, and kept in" in caplog.text


def test_a_run_of_a_version_without_dice_columns_goes_on(
    quick_options: TrainOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its line has empty cells there, and every number under its name."""
    whole = train(replace(quick_options, out=tmp_path / "whole")).parent
    folder = train(quick_options).parent
    last = read_checkpoint(folder / "last.pth")
    last.resume |= {"epoch": 1, "batch": 3}  # as if the second one were not validated yet
    write_checkpoint(folder / "last.pth", last)
    (expected, also), (first, _) = rows_of(whole), rows_of(folder)
    older = {name: cell for name, cell in first.items() if not name.startswith("dice ")}
    assert len(older) == len(first) - 4
    older["remark"] = "7"
    lines = [",".join(map(str, line)) for line in (older, older.values())]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    train(TrainOptions(resume=folder))
    one, two = rows_of(folder)
    assert list(one) == [*expected, "remark"]
    assert one == {**first, **dict.fromkeys(first.keys() - older.keys(), ""), "remark": "7"}
    same = also.keys() - {"seconds", "loss"}
    assert {name: two[name] for name in same} == {name: also[name] for name in same}
    assert two["remark"] == ""
    assert any(two[f"dice class {number}"] for number in (1, 2, 3))
    assert "cannot be read" not in caplog.text
    assert (folder / "curve.png").exists()


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("error", [OSError("full"), RuntimeError("no TeX"), ImportError("no map")])
def test_a_curve_that_is_not_drawn_replaces_no_error(
    quick_options: TrainOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fails(folder: RunFolder) -> None:
        raise error

    monkeypatch.setattr(RunFolder, "draw", fails)
    data = load_training_data(replace(quick_options), None)
    Reporter(RunFolder(quick_options.out), data, None).close()
    assert "the curve was not drawn" in caplog.text


def test_a_full_disk_under_the_metrics_names_them(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends after the steps of the epoch, and goes on from there."""

    def full(writer: csv.DictWriter[str], row: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerow", full)
        with pytest.raises(UserError, match=r"metrics\.csv, after step 3") as caught:
            train(quick_options)
    assert caught.value.seen == "No space left on device"
    assert train(TrainOptions(resume=quick_options.out)).name == "best.pth"


def test_metrics_are_in_utf_8_in_any_locale(quick_options: TrainOptions) -> None:
    """A class name comes as surrogates where that cannot decode it."""
    flags = f"--images {quick_options.images} --masks {quick_options.masks} --channels 1 "
    flags += f"--classes 4 --width 4 --batch-size 4 --epochs 1 --out {quick_options.out} "
    words = [
        sys.executable,
        "-m",
        "unetrt.cli",
        "train",
        *flags.split(),
        "--class-names",
        "a,b,c,é",
    ]
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        words, env={**os.environ, **plain}, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ",iou é," in RunFolder(quick_options.out, resumed=True).metrics.read_text("utf-8")
