"""Weights & Biases, offline: a real run in a folder, no account and no network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from unetrt.contract.errors import UserError
from unetrt.contract.modules import pip_install
from unetrt.training.checkpoint import read_checkpoint, write_checkpoint
from unetrt.training.interrupts import Stopped
from unetrt.training.options import TrainOptions
from unetrt.training.ranks import Ranks
from unetrt.training.report import Reporter
from unetrt.training.rundir import RunFolder
from unetrt.training.samples import load_training_data
from unetrt.training.tracking import Tracker
from unetrt.training.train import train
from unetrt.training.trainer import Trainer
from unetrt.training.unet import UNet


def test_without_the_package_the_line_that_brings_it_is_told(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetrt.training.tracking.is_installed", lambda name: False)
    with pytest.raises(UserError, match="needs the package wandb") as caught:
        train(replace(quick_options, wandb=True))
    assert caught.value.hint == pip_install("'unetrt[wandb]'")
    assert quick_options.out is not None
    assert not quick_options.out.exists()


@pytest.mark.parametrize("key", [None, "short"])
def test_without_a_key_nothing_is_read(tmp_path: Path, key: str | None) -> None:
    """In a process of its own: wandb looks for its key once."""
    pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment = {**kept, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    if key is not None:
        environment["WANDB_API_KEY"] = key
    words = ["-m", "unetrt.cli", "train", "--wandb", "--images", str(tmp_path / "none")]
    done = subprocess.run(
        [sys.executable, *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "wandb does not start" in done.stderr
    assert "Hint: wandb login" in done.stderr
    assert "WANDB_MODE=offline" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_is_off_unless_asked_for(quick_options: TrainOptions) -> None:
    folder = train(quick_options).parent
    assert not (folder / "wandb").exists()
    assert read_checkpoint(folder / "last.pth").resume["wandb"] is None
    if "wandb" not in sys.modules:
        assert not any(name.startswith("wandb") for name in sys.modules)


class Told:
    """Stands for wandb's run: keeps what it is closed with."""

    def __init__(self) -> None:
        self.codes: list[int] = []

    def finish(self, exit_code: int = 0) -> None:
        self.codes.append(exit_code)


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (Stopped, 0), (UserError("no memory"), 1), (ZeroDivisionError, 1)],
)
def test_a_run_that_fails_is_not_told_as_finished(
    quick_options: TrainOptions,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException] | BaseException | None,
    code: int,
) -> None:
    data = load_training_data(quick_options, None)
    told, tracker = Told(), Tracker.__new__(Tracker)
    tracker._run = told
    folder = RunFolder(quick_options.out)
    folder.create()
    reporter = Reporter(folder, data, tracker)
    monkeypatch.setattr(Tracker, "run_id", "abc")
    trainer = Trainer(quick_options, data, UNet(1, 4, 4), folder, reporter, Ranks())

    def ends(self: Trainer) -> None:
        self._at.epoch += 2
        if error is not None:
            raise error

    monkeypatch.setattr(Trainer, "_run_epoch", ends)
    with suppress(Stopped, UserError, ZeroDivisionError):
        trainer.run()
    assert told.codes == [code]


def test_a_run_offline_holds_scores_masks_and_histograms(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = train(replace(quick_options, wandb=True)).parent
    (run,) = (folder / "wandb").glob("offline-run-*")
    assert read_checkpoint(folder / "last.pth").resume["wandb"] == run.name.split("-")[3]
    (log,) = run.glob("run-*.wandb")
    text = log.read_bytes()
    for name in (b"loss", b"learning_rate", b"iou class 2", b"weights/inc.double_conv.0.weight"):
        assert name in text
    assert b"gradients/outc.conv.bias" in text
    pictures = list((run / "files" / "media" / "images").rglob("*.png"))
    assert len(pictures) >= 4 * 3, "four images, each with two masks; equal ones are kept once"


def test_a_resumed_run_is_the_same_run(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = train(replace(quick_options, wandb=True)).parent
    last = read_checkpoint(folder / "last.pth")
    before = dict(last.resume)
    last.resume |= {"epoch": 1, "batch": 3}  # as if the second one were not validated yet
    write_checkpoint(folder / "last.pth", last)
    train(TrainOptions(resume=folder, wandb=True))
    assert read_checkpoint(folder / "last.pth").resume["epoch"] == 2
    runs = list((folder / "wandb").glob("offline-run-*"))
    assert {Path(run).name.split("-")[3] for run in runs} == {before["wandb"]}
    steps = [_steps(log) for run in sorted(runs) for log in run.glob("run-*.wandb")]
    assert sorted(steps) == [[1, 2], [2]], "the second epoch is the second step in both"


def _steps(log: Path) -> list[int]:
    """Of the epochs that a run's file holds, each of one digit."""
    found = re.findall(rb"_step\x82\x01\x01([0-9])", log.read_bytes())
    return sorted({int(number) for number in found})


CUT = """
import os, subprocess, sys
from unetrt.cli.main import main
from unetrt.training.trainer import Trainer

def epoch(self, whole=Trainer._run_epoch):
    whole(self)
    subprocess.run(["pkill", "-9", "-P", str(os.getpid()), "-f", "wandb-core"])

Trainer._run_epoch = epoch
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(shutil.which("pkill") is None, reason="there is no pkill")
def test_a_run_goes_on_where_wandbs_own_process_ends(quick_options: TrainOptions) -> None:
    """As where the system is short of memory. In a process of its own: wandb has one for all."""
    pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    out = quick_options.out
    assert out is not None
    words = [
        "train", "--wandb", "--images", str(quick_options.images), "--masks",
        str(quick_options.masks), "--classes", "4", "--channels", "1", "--width", "2",
        "--epochs", "5", "--out", str(out),
    ]  # fmt: skip
    own = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}  # no other's process
    done = subprocess.run(
        [sys.executable, "-c", CUT, *words], env={**own, "WANDB_MODE": "offline"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wandb takes nothing more of this run, which goes on without") == 1
    assert len((out / "metrics.csv").read_text().splitlines()) == 6
    last = read_checkpoint(out / "last.pth").resume
    assert (last["epoch"], bool(last["wandb"])) == (5, True)
