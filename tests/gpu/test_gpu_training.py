"""Training on an NVIDIA GPU: it learns in every precision, goes on, and lives in little memory."""

from __future__ import annotations

import csv
import itertools
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.batches import in_batches
from tests.conftest import steel
from unetrt.engine.torch_backend import TorchEngine
from unetrt.training import step, trainer
from unetrt.training.checkpoint import read_checkpoint
from unetrt.training.losses import segmentation_loss
from unetrt.training.options import RECIPES, TrainOptions
from unetrt.training.synthetic import write_dataset
from unetrt.training.train import train

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    images, masks = write_dataset(tmp_path / "data", 16, (96, 128), seed=1)
    return TrainOptions(
        images=images,
        masks=masks,
        channels=1,
        classes=4,
        width=8,
        scale=1.0,
        validation=25,
        recipe=replace(RECIPES["modern"], epochs=16, batch_size=2, learning_rate=2e-2),
        device=DEVICE,
        out=tmp_path / "run",
    )


def folder_of(options: TrainOptions) -> Path:
    assert options.out is not None
    return options.out


def losses(best: Path) -> list[float]:
    with best.with_name("metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
def test_it_learns_in_every_precision(
    precision: torch.dtype | None, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 with its scaler, though this GPU may have bfloat16."""
    monkeypatch.setattr(trainer, "amp_dtype", lambda device: precision)
    found = losses(train(replace(options, amp=precision is not None)))
    assert len(found) == options.recipe.epochs
    assert found[-1] < 0.7 * found[0]


def test_its_checkpoint_has_the_same_masks_on_the_cpu(options: TrainOptions) -> None:
    checkpoint = read_checkpoint(train(options))
    image = steel(3, 96, 128)[None]
    masks = []
    for device in (DEVICE, "cpu"):
        with TorchEngine(checkpoint, device) as engine:
            masks.append(in_batches(engine, image, (96, 128), 1))
    assert len(np.unique(masks[0])) > 1
    assert (masks[0] == masks[1]).mean() > 0.99, "convolutions are in TF32 on a GPU"


def test_a_run_goes_on_where_it_was_stopped(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its optimiser and random state; on a GPU sums may come in another order."""
    options = replace(options, amp=True)
    whole = losses(train(options))
    stopped = replace(options, out=folder_of(options).with_name("stopped"))
    taken = itertools.count(1)

    def interrupted(*arguments: Any) -> torch.Tensor:
        if next(taken) == 40:  # of 96: in the seventh epoch
            os.kill(os.getpid(), signal.SIGINT)
        return segmentation_loss(*arguments)

    monkeypatch.setattr(step, "segmentation_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    found = losses(train(replace(stopped, resume=folder_of(stopped))))
    assert len(found) == options.recipe.epochs
    assert found[:6] == pytest.approx(whole[:6], rel=0.2)
    assert found[-1] == pytest.approx(whole[-1], rel=0.2)


def test_blocks_are_computed_twice_where_memory_is_short(
    options: TrainOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """Features of a batch of 8 at 96×128 and width 8 take more than what is left here."""
    large = replace(options, recipe=replace(options.recipe, epochs=1, batch_size=8))
    train(replace(large, out=folder_of(options).with_name("first")))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train(replace(large, out=folder_of(options).with_name("second")))
    most = torch.cuda.max_memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(0.8 * most / total)
        with caplog.at_level(logging.WARNING):
            found = losses(train(large))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(found) == 1
    assert any("computed twice" in record.message for record in caplog.records)
