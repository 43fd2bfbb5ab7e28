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
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unetrt.contract.errors import UserError
from unetrt.contract.modules import pip_install
from unetrt.training.checkpoint import read_checkpoint, write_checkpoint
from unetrt.training.interrupts import Stopped
from unetrt.training.masknet import MaskNet
from unetrt.training.options import TrainOptions
from unetrt.training.ranks import Ranks
from unetrt.training.report import Reporter
from unetrt.training.rundir import RunFolder
from unetrt.training.samples import load_training_data
from unetrt.training.synthetic import draw_pair
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


def test_it_is_not_imported_unless_asked_for(quick_options: TrainOptions) -> None:
    """In a process of its own: another test may have imported it into this one."""
    code = "import sys\nfrom unetrt.cli.main import main\n"
    code += "assert main(sys.argv[1:]) == 0\nassert 'torch' in sys.modules\n"
    code += "sys.exit('wandb' in sys.modules and 'imported')"
    words = f"train --images {quick_options.images} --masks {quick_options.masks} --channels 1 "
    words += f"-c 4 --width 2 -s 1 -v 25 -e 1 -b 8 --device cpu --out {quick_options.out}"
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


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


class Run:
    """Stands for wandb's run: keeps what is logged."""

    id = "abc"

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.steps: list[int] = []
        self.axes: dict[str, str | None] = {}
        self.codes: list[int] = []

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes[name] = step_metric

    def log(self, content: dict[str, Any], step: int, commit: bool) -> None:
        self.logged.append(content)
        self.steps.append(step)

    def finish(self, exit_code: int = 0) -> None:
        self.codes.append(exit_code)


def tracker_of(run: Run) -> Tracker:
    tracker = Tracker.__new__(Tracker)
    tracker._run = run
    tracker._wandb = SimpleNamespace(Histogram=len, Image=lambda pixels, masks, caption: masks)
    return tracker


@pytest.mark.parametrize("what", ["a file", "a histogram", "memory"])
def test_what_cannot_be_shown_ends_no_run(
    quick_options: TrainOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    """Said once; the networks are in the mode that they were in, and the run is trained."""

    def fails(*arguments: object) -> None:
        raise RuntimeError("CUDA error: out of memory") if what == "memory" else OSError("gone")

    run = Run()
    tracker = tracker_of(run)
    modes: list[bool] = []

    def log_epoch(self: Tracker, row: Any, masknet: MaskNet, *rest: Any) -> None:
        masknet.train()
        with monkeypatch.context() as patch:
            if what == "a file":
                patch.setattr("unetrt.training.samples.Sample.load", fails)
            elif what == "a histogram":
                tracker._wandb.Histogram = fails
            else:
                patch.setattr("unetrt.training.validate.masks_from_net", fails)
            whole(self, row, masknet, *rest)
        modes.append(masknet.training)

    whole = Tracker.log_epoch
    monkeypatch.setattr(Tracker, "log_epoch", log_epoch)
    monkeypatch.setattr("unetrt.training.train.Tracker", lambda *_: tracker)
    monkeypatch.setattr("unetrt.training.train.require_wandb", lambda: None)
    train(replace(quick_options, wandb=True))
    assert modes == [True, True]
    assert not [row for row in run.logged if "epoch" in row]
    assert max(run.steps) == 3, "of the first epoch"
    told = [r.message for r in caplog.records if "wandb takes nothing more" in r.message]
    assert len(told) == 1
    assert ("does not fit into the memory" if what == "memory" else "gone") in told[0]


class Narrow(MaskNet):
    """Takes no image that is 500 pixels high."""

    def forward(self, images: Tensor, size_like: Tensor) -> Tensor:
        if images.shape[1] > 500:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return super().forward(images, size_like)


def test_masks_are_shown_where_only_tiles_fit(
    quick_options: TrainOptions, empty_pairs: tuple[Path, Path]
) -> None:
    """As validation predicts them: the same masks."""
    for index in range(4):
        grey, mask = draw_pair(index, (700, 40), seed=3)
        for folder, pixels in zip(empty_pairs, (grey, mask), strict=True):
            Image.fromarray(pixels).save(folder / f"{index}.png")
    images, masks = empty_pairs
    data = load_training_data(
        replace(quick_options, images=images, masks=masks, validation=50), None
    )
    net, run = UNet(1, 4, 4), Run()
    tracker = tracker_of(run)
    for masknet in (MaskNet(net, data.spec), Narrow(net, data.spec)):
        tracker.log_epoch({"epoch": 1, "step": 3}, masknet, net, data.validation)
    whole, tiled = run.logged
    for one, other in zip(whole["masks"], tiled["masks"], strict=True):
        shown = one["predicted"]["mask_data"], other["predicted"]["mask_data"]
        assert np.array_equal(*shown)


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
    for name in (b"foreground_miou", b"iou class 2", b"dice class 2", b"step_loss"):
        assert name in text
    assert b"weights/inc.double_conv.0.weight" in text
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
    assert sorted(steps) == [[1, 2, 3, 4, 5, 6], [6]], "the second epoch ends at the sixth in both"


def _steps(log: Path) -> list[int]:
    """Of the rows that a run's file holds, each of one digit."""
    found = re.findall(rb"_step\x82\x01\x01([0-9])", log.read_bytes())
    return sorted({int(number) for number in found})


def test_the_loss_of_steps_is_logged_about_twenty_times_an_epoch(
    quick_options: TrainOptions,
) -> None:
    run = Run()
    tracker, folder = tracker_of(run), RunFolder(quick_options.out)
    reporter = Reporter(folder, load_training_data(quick_options, None), tracker)
    for steps, count in ((3, 3), (20, 20), (50, 25), (1000, 20)):
        run.logged.clear()
        for step in range(1, steps + 1):
            reporter.tell_step(step, 1 / step, steps)
        assert len(run.logged) == count
        assert run.logged[-1] == {"step_loss": 1 / steps, "step": steps}


def test_scores_are_drawn_by_epoch_and_losses_by_step(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row has the step of the run, above those before: wandb drops what is not."""
    run = Run()
    fake: Any = SimpleNamespace(init=lambda **_: run, errors=SimpleNamespace(Error=OSError))
    fake.Histogram, fake.Image = len, lambda pixels, masks, caption: masks
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("unetrt.training.train.require_wandb", lambda: None)
    train(replace(quick_options, wandb=True))
    assert run.axes == {"epoch": None, "*": "epoch", "step_loss": "step"}
    assert run.steps == [1, 2, 3, 3, 4, 5, 6, 6]
    losses = [row["step_loss"] for row in run.logged if "step_loss" in row]
    epochs = [row for row in run.logged if "epoch" in row]
    assert [row["epoch"] for row in epochs] == [1, 2]
    for row, part in zip(epochs, (losses[:3], losses[3:]), strict=True):
        assert row["loss"] == pytest.approx(sum(part) / 3)
        assert {"dice class 1", "iou class 1", "masks"} <= row.keys()


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
