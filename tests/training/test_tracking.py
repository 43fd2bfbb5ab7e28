"""Weights & Biases, offline: a real run in a folder, no account and no network."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from unetrt.contract.errors import UserError
from unetrt.training.checkpoint import read_checkpoint
from unetrt.training.options import TrainOptions
from unetrt.training.train import train


def test_without_the_package_the_line_that_brings_it_is_told(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetrt.training.tracking.is_installed", lambda name: False)
    with pytest.raises(UserError, match="needs the package wandb") as caught:
        train(replace(quick_options, wandb=True))
    assert caught.value.hint == "pip install 'unetrt[wandb]'"
    assert quick_options.out is not None
    assert not quick_options.out.exists()


def test_it_is_off_unless_asked_for(quick_options: TrainOptions) -> None:
    folder = train(quick_options).parent
    assert not (folder / "wandb").exists()
    assert read_checkpoint(folder / "last.pth").resume["wandb"] is None
    if "wandb" not in sys.modules:
        assert not any(name.startswith("wandb") for name in sys.modules)


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
    before = read_checkpoint(folder / "last.pth").resume
    train(TrainOptions(resume=folder, wandb=True))
    runs = list((folder / "wandb").glob("offline-run-*"))
    assert {Path(run).name.split("-")[3] for run in runs} == {before["wandb"]}
