"""Pixels of other than 8 bits: what is sure is read, the rest is an error that helps."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.contract.encodings import (
    GREYS,
    pnm,
    saved,
    scene,
    tiff,
)
from unetrt.contract.errors import ImageError
from unetrt.contract.images import read_image


def twelve_bits() -> npt.NDArray[np.uint16]:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    assert values.max() == 4095
    return values


def encoded_16(samples: npt.NDArray[np.uint16], suffix: str) -> bytes:
    ok, data = cv2.imencode(suffix, samples)
    assert ok
    return data.tobytes()


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_12_bit_data_needs_its_depth(suffix: str) -> None:
    data = encoded_16(twelve_bits(), suffix)
    with pytest.raises(ImageError, match="--bit-depth 12") as caught:
        read_image(data, 1)
    assert "12 bits" in str(caught.value.seen)
    image = read_image(data, 1, bit_depth=12)
    np.testing.assert_array_equal(image[:, :, 0], twelve_bits() >> 4)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".ppm"])
def test_12_bit_colours_need_their_depth(suffix: str) -> None:
    colours = np.dstack([twelve_bits(), twelve_bits()[::-1], twelve_bits().T])
    data = encoded_16(colours, suffix)
    with pytest.raises(ImageError, match="--bit-depth 12"):
        read_image(data, 3)
    image = read_image(data, 3, bit_depth=12)
    np.testing.assert_array_equal(image, colours[:, :, ::-1] >> 4)


@pytest.mark.parametrize(
    ("highest", "depth"), [(3, 8), (256, 9), (511, 9), (512, 10), (1023, 10), (4095, 12)]
)
def test_the_depth_named_is_the_one_seen(highest: int, depth: int) -> None:
    data = encoded_16(np.array([[0, highest]], np.uint16), ".png")
    with pytest.raises(ImageError, match=f"--bit-depth {depth}"):
        read_image(data, 1)


@pytest.mark.parametrize("level", [0, 1, 15])
def test_dark_pictures_of_16_bits_are_accepted(level: int) -> None:
    data = GREYS["png 16 l"](np.full((3, 4), level, np.uint8))
    assert (read_image(data, 1) == level).all()


def test_4096_and_above_is_16_bits() -> None:
    data = encoded_16(np.array([[1, 4096]], np.uint16), ".png")
    assert read_image(data, 1).ravel().tolist() == [0, 16]


def test_values_above_the_given_depth_are_an_error() -> None:
    data = encoded_16(np.array([[0, 1024]], np.uint16), ".png")
    with pytest.raises(ImageError, match="above 10 bits"):
        read_image(data, 1, bit_depth=10)


def test_bit_depth_leaves_alone_what_a_file_says_itself() -> None:
    data = b"P5 2 1 1023\n" + np.array([512, 1023], ">u2").tobytes()
    for depth in (None, 12):
        assert read_image(data, 1, bit_depth=depth)[..., 0].tolist() == [[128, 255]]


def test_bytes_in_a_16_bit_file_keep_their_brightness() -> None:
    data = encoded_16(np.array([[7, 255]], np.uint16), ".png")
    with pytest.raises(ImageError) as caught:
        read_image(data, 1)
    assert "--bit-depth 8 " in str(caught.value.hint)
    assert read_image(data, 1, bit_depth=8).ravel().tolist() == [7, 255]


def test_bit_depth_leaves_8_bits_alone() -> None:
    data = GREYS["png l"](scene()[:, :, 0])
    np.testing.assert_array_equal(read_image(data, 1, bit_depth=12), read_image(data, 1))


@pytest.mark.parametrize("bit_depth", [0, 7, 17])
def test_bit_depths_that_make_no_sense(bit_depth: int) -> None:
    with pytest.raises(ValueError, match="bit_depth"):
        read_image(b"", 1, bit_depth=bit_depth)


def test_pgm_says_its_depth() -> None:
    data = pnm(b"P5", twelve_bits(), 4095)
    np.testing.assert_array_equal(read_image(data, 1)[:, :, 0], twelve_bits() >> 4)
    with pytest.raises(ImageError, match="above the maximum"):
        read_image(pnm(b"P5", twelve_bits(), 4000), 1)


def test_float_pixels_are_refused() -> None:
    grey = np.ones((3, 4), np.float32)
    with pytest.raises(ImageError, match="float pixels"):
        read_image(saved(Image.fromarray(grey), format="TIFF"), 1)
    with pytest.raises(ImageError, match="float pixels"):
        read_image(encoded_float_rgb(), 3)
    with pytest.raises(ImageError, match="float pixels"):
        read_image(saved(Image.fromarray(grey), format="PPM"), 1)


def encoded_float_rgb() -> bytes:
    ok, data = cv2.imencode(".tiff", np.ones((3, 4, 3), np.float32))
    assert ok
    return data.tobytes()


def test_wide_and_signed_integers_are_refused() -> None:
    with pytest.raises(ImageError, match="more than 16 bits"):
        read_image(tiff(np.ones((3, 4), np.uint32)), 1)
    for kind in (np.int8, np.int16, np.int32):
        with pytest.raises(ImageError, match="signed integers"):
            read_image(tiff(np.ones((3, 4), kind), form=2), 1)
