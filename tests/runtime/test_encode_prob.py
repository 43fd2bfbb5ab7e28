"""Probabilities as files, and formats that do not go with what the model gives."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import U8
from unetrt.runtime.encode import (
    MaskFormat,
    check_output_suffix,
    encode_mask,
    resolve_format,
)

TWO = ModelSpec(classes=2, result="prob")
FOUR = ModelSpec(classes=4, result="prob")


def planes(classes: int) -> U8:
    return np.random.default_rng(0).integers(0, 256, (classes, 13, 17), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_prob_is_the_second_class_in_every_reader(suffix: str) -> None:
    data = encode_mask(planes(2), TWO, "prob", suffix)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), planes(2)[1])
    read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read, planes(2)[1])


def test_prob_npy_holds_every_class() -> None:
    data = encode_mask(planes(4), FOUR, "prob-npy", ".npy")
    np.testing.assert_array_equal(np.load(io.BytesIO(data)), planes(4))


@pytest.mark.parametrize("fmt", ["auto", "index", "palette", "bilevel", "npy", "rle"])
def test_probabilities_are_no_masks(fmt: MaskFormat) -> None:
    with pytest.raises(UserError, match=f"{fmt} is no format for what the model gives"):
        resolve_format(fmt, TWO)


@pytest.mark.parametrize("fmt", ["prob", "prob-npy"])
def test_masks_are_no_probabilities(fmt: MaskFormat) -> None:
    with pytest.raises(UserError, match="no format for what the model gives"):
        resolve_format(fmt, ModelSpec(classes=2))
    assert resolve_format(fmt, TWO) == fmt


def test_above_two_classes_npy_is_named() -> None:
    with pytest.raises(UserError, match="the probability of one class") as caught:
        resolve_format("prob", FOUR)
    assert caught.value.hint == "--format prob-npy"
    assert resolve_format("prob-npy", FOUR) == "prob-npy"


def test_the_file_name_goes_with_the_format() -> None:
    check_output_suffix(Path("a.npy"), FOUR, "prob-npy")
    check_output_suffix(Path("a.png"), TWO, "prob")
    for name, fmt in (("a.png", "prob-npy"), ("a.npy", "prob")):
        with pytest.raises(UserError, match="no name for masks of the format"):
            check_output_suffix(Path(name), TWO, fmt)  # type: ignore[arg-type]
