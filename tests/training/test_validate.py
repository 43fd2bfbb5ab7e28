from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from tests.conftest import balanced_checkpoint
from unetrt.contract.errors import UserError
from unetrt.contract.images import read_image
from unetrt.contract.memory import run_bytes
from unetrt.contract.metrics import ConfusionMatrix
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import NO_CLASS, U8
from unetrt.training.ahead import map_ahead
from unetrt.training.checkpoint import (
    Checkpoint,
    read_checkpoint,
    unet_from_checkpoint,
    write_checkpoint,
)
from unetrt.training.curve import draw_curve
from unetrt.training.masknet import MaskNet
from unetrt.training.memory import PIXEL_BYTES
from unetrt.training.options import RecipeOptions, TrainOptions
from unetrt.training.samples import Labelled, Sample, TrainingData, load_training_data
from unetrt.training.synthetic import draw_pair
from unetrt.training.train import train
from unetrt.training.unet import UNet
from unetrt.training.validate import validate, warn_of_one_class
from unetrt.training.weights import weights_from_samples

NAMES = ("ground", "crack", "rust")


def warned(caplog: pytest.LogCaptureFixture, truth: U8, predicted: U8) -> str:
    caplog.clear()
    matrix = ConfusionMatrix(3)
    matrix.update(truth, predicted)
    warn_of_one_class(matrix, NAMES)
    return "\n".join(record.message for record in caplog.records)


def test_one_class_everywhere_is_told_with_the_shares(caplog: pytest.LogCaptureFixture) -> None:
    truth = np.array([[0, 0, 0, 1, 1, NO_CLASS]], np.uint8)
    text = warned(caplog, truth, np.zeros_like(truth))
    assert "every pixel of the validation is predicted as ground" in text
    assert "ground 60.00 %, crack 40.00 %, rust 0.00 %" in text
    assert "predicted as rust" in warned(caplog, truth, np.full_like(truth, 2))
    assert "not finite" in warned(caplog, truth, np.full_like(truth, NO_CLASS))
    assert not warned(caplog, truth, np.array([[0, 0, 0, 0, 1, 0]], np.uint8))
    assert not warned(caplog, np.zeros_like(truth), np.zeros_like(truth)), "nothing else is there"


def test_a_run_that_predicts_one_class_says_so(
    quick_options: TrainOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = UNet(1, 4, 4)
    assert net.outc.conv.bias is not None
    with torch.no_grad():
        net.outc.conv.bias += torch.tensor([100.0, 0, 0, 0])
    start = Checkpoint(ModelSpec(channels=1, classes=4, width=4, scale=1.0), net.state_dict())
    write_checkpoint(tmp_path / "start.pth", start)
    recipe = RecipeOptions(epochs=2, batch_size=4, learning_rate=1e-9)
    train(replace(quick_options, load=tmp_path / "start.pth", recipe=recipe))
    told = [r.message for r in caplog.records if "every pixel" in r.message]
    assert len(told) == 2
    assert "class 3" in told[0]


class Tight(MaskNet):
    """Takes so many images at once."""

    most = 2
    seen: list[int]

    def forward(self, images: Tensor, size_like: Tensor) -> Tensor:
        self.seen.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return super().forward(images, size_like)


def test_validation_takes_what_fits(
    quick_options: TrainOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """Twelve images: once 12, once 6, once 3, and then one at a time."""
    data = load_training_data(replace(quick_options, validation=75), None)
    net = UNet(1, 4, 4)
    expected = validate(MaskNet(net, data.spec), data.validation).counts
    tight = Tight(net, data.spec)
    tight.seen = []
    assert np.array_equal(validate(tight, data.validation).counts, expected)
    assert tight.seen == [12, 6, 3] + 12 * [1]
    assert sum("out of memory in validation" in r.message for r in caplog.records) == 3
    tight.most = 0
    with pytest.raises(UserError, match="does not fit into the memory") as caught:
        validate(tight, data.validation)
    assert "9 GiB" in str(caught.value.seen)


class Narrow(MaskNet):
    """Takes so many pixels at once; sizes: of what it took."""

    most = 0
    sizes: set[tuple[int, ...]]

    def forward(self, images: Tensor, size_like: Tensor) -> Tensor:
        if images.numel() > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        self.sizes.add(tuple(images.shape[1:3]))
        return super().forward(images, size_like)


@pytest.fixture
def large_pairs(quick_options: TrainOptions, empty_pairs: tuple[Path, Path]) -> TrainingData:
    """Two pictures of 700×40 to score."""
    images, masks = empty_pairs
    for index in range(4):
        grey, mask = draw_pair(index, (700, 40), seed=3)
        Image.fromarray(grey).save(images / f"{index}.png")
        Image.fromarray(mask).save(masks / f"{index}.png")
    return load_training_data(
        replace(quick_options, images=images, masks=masks, validation=50), None
    )


def test_an_image_that_does_not_fit_is_predicted_in_tiles(
    large_pairs: TrainingData, caplog: pytest.LogCaptureFixture
) -> None:
    data, net = large_pairs, balanced_checkpoint()
    unet = unet_from_checkpoint(net)
    expected = validate(MaskNet(unet, data.spec), data.validation).counts
    assert np.count_nonzero(expected) > 4
    narrow = Narrow(unet, data.spec)
    narrow.most, narrow.sizes = 600 * 40, set()
    found = validate(narrow, data.validation).counts
    assert np.abs(found - expected).sum() <= expected.sum() // 10_000
    assert narrow.sizes == {(492, 40)}
    assert "in overlapping tiles" in caplog.text
    narrow.most = 300 * 40
    with pytest.raises(UserError, match="does not fit into the memory of this machine"):
        validate(narrow, data.validation)


def test_what_the_hosts_memory_would_not_take_is_not_tried(
    large_pairs: TrainingData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = large_pairs.spec
    memory = 2 * run_bytes(spec, PIXEL_BYTES * spec.width, (600, 40), (600, 40))
    monkeypatch.setattr("unetrt.training.validate.memory_bytes", lambda: memory)
    narrow = Narrow(unet_from_checkpoint(balanced_checkpoint()), large_pairs.spec)
    narrow.most, narrow.sizes = 1 << 30, set()
    validate(narrow, large_pairs.validation)
    assert narrow.sizes == {(492, 40)}
    assert not caplog.records


def test_validation_is_read_ahead(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By other threads, each image once, with the counts that one thread gives."""
    data = load_training_data(replace(quick_options, validation=75), None)
    net = MaskNet(UNet(1, 4, 4), data.spec)
    expected = validate(net, data.validation).counts
    whole, read = Sample.load, []

    def load(sample: Sample) -> Labelled:
        read.append((sample.pair.name, threading.current_thread() is threading.main_thread()))
        return whole(sample)

    monkeypatch.setattr(Sample, "load", load)
    found = validate(net, data.validation, None, None, 2)
    assert np.array_equal(found.counts, expected)
    assert sorted(read) == [(sample.pair.name, False) for sample in data.validation]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_no_more_is_begun_than_is_said(workers: int) -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def work(task: int) -> int:
        with lock:
            begun.append(task)
        return task

    for done, result in enumerate(map_ahead(work, range(20), workers)):
        assert result == done
        time.sleep(0.001)
        assert len(begun) <= done + max(1, 2 * workers)
    assert sorted(begun) == list(range(20))


def test_weights_are_counted_without_the_images(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pairs that are not held the masks alone are read."""
    held = load_training_data(quick_options, None).train
    files = load_training_data(quick_options, None, memory=0).train
    assert not any(sample.held for sample in files)
    expected = weights_from_samples(held, 4)
    monkeypatch.setattr(Sample, "load", None)
    assert weights_from_samples(files, 4) == expected


def test_an_epoch_without_a_score_is_no_best_one(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first epoch has none, the second one the lowest there is: that one is the best."""
    matrices = [ConfusionMatrix(4), ConfusionMatrix(4)]
    truth = np.zeros((2, 2), np.uint8)
    matrices[0].update(truth, truth)
    matrices[1].update(truth + 1, truth)
    results = iter(matrices)
    monkeypatch.setattr("unetrt.training.trainer.validate", lambda *_: next(results))
    best = train(quick_options)
    assert sum("no score" in record.message for record in caplog.records) == 1
    last = read_checkpoint(best.with_name("last.pth"))
    assert last.resume["best"] == 0
    assert torch.equal(last.state["outc.conv.bias"], read_checkpoint(best).state["outc.conv.bias"])


def test_the_curve_shows_every_column_and_stands_absent_scores(tmp_path: Path) -> None:
    row = {"step": "9", "foreground_miou": "0.5", "learning_rate": "0.1", "iou a": "0.3"}
    rows = [{"epoch": str(i), "loss": f"{9 / i}", "iou b": "", **row} for i in range(1, 6)]
    draw_curve(rows, tmp_path / "curve.png")
    picture = read_image(tmp_path / "curve.png", 3)
    assert picture.shape[:2] == (720, 640)
    assert picture[:250].std() > 10
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_the_curve_says_that_the_mean_is_the_foregrounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands beside the background's own IoU, which it leaves out."""
    texts: list[str] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: object, **options: object) -> None:
        legend = figure.axes[1].get_legend()
        assert legend is not None
        texts.extend(text.get_text() for text in legend.get_texts())
        save(figure, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", keep)
    row = {"epoch": "1", "loss": "1", "foreground_miou": "0.5", "learning_rate": "0.1"}
    draw_curve([{**row, "iou background": "0.9", "iou a": "0.5"}], tmp_path / "curve.png")
    assert texts == ["foreground mIoU", "background", "a"]
