"""Truths of training, held as small as the network's images; those of validation as they are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.conftest import steel
from unetrt.contract.resize import resize_mask
from unetrt.contract.types import U8
from unetrt.training.options import LossSize, RecipeOptions, TrainOptions
from unetrt.training.resume import data_checksums
from unetrt.training.samples import TrainingData, load_training_data
from unetrt.training.weights import weights_from_samples

SIZE = (61, 47)


def mask_of(index: int) -> U8:
    blobs = cv2.GaussianBlur(steel(index, *SIZE)[..., 0], (0, 0), 3)
    return np.digitize(blobs, np.percentile(blobs, (40, 80))).astype(np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, masks = tmp_path / "imgs", tmp_path / "masks"
    for folder in (images, masks):
        folder.mkdir()
    for index in range(4):
        Image.fromarray(steel(index, *SIZE)[..., 0]).save(images / f"{index}.png")
        Image.fromarray(mask_of(index)).save(masks / f"{index}.png")
    return images, masks


def data_of(folders: tuple[Path, Path], size: LossSize, memory: int | None = None) -> TrainingData:
    options = TrainOptions(
        images=folders[0],
        masks=folders[1],
        channels=1,
        classes=3,
        scale=0.5,
        validation=25,
        recipe=RecipeOptions(loss_size=size),
    )
    return load_training_data(options, None, memory=memory)


@pytest.mark.parametrize("memory", [None, 0], ids=["held", "read each time"])
def test_training_truths_are_as_large_as_the_images(
    folders: tuple[Path, Path], memory: int | None
) -> None:
    data = data_of(folders, "network", memory)
    for sample in data.train:
        image, truth = sample.load()
        assert (sample.held is None) == (memory == 0)
        assert truth.shape == image.shape[:2] == (30, 23)
        full = mask_of(int(sample.pair.name))
        np.testing.assert_array_equal(truth, resize_mask(full, (30, 23)))
        np.testing.assert_array_equal(sample.truth(), truth)
    assert [s.load()[1].shape for s in data.validation] == [SIZE]


def test_they_keep_their_size_where_the_loss_is_taken_there(folders: tuple[Path, Path]) -> None:
    data = data_of(folders, "mask")
    assert {s.load()[1].shape for s in (*data.train, *data.validation)} == {SIZE}


def test_weights_and_checksums_know_nothing_of_the_memory(folders: tuple[Path, Path]) -> None:
    held, read = (data_of(folders, "network", memory) for memory in (None, 0))
    assert weights_from_samples(held.train, 3) == weights_from_samples(read.train, 3)
    large = data_of(folders, "mask")
    assert data_checksums(held) == data_checksums(read) == data_checksums(large)
