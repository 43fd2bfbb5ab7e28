"""The one way from an image to the network's input."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unetrt.contract.errors import ImageError
from unetrt.contract.images import MAX_PIXELS, read_image
from unetrt.contract.resize import network_input, resize_image, resize_mask
from unetrt.contract.spec import ModelSpec, Resize
from unetrt.contract.types import U8

SIDES = st.integers(1, 40)
KERNELS: tuple[Resize, ...] = ("area", "pil-bicubic")


def noise(height: int, width: int, channels: int) -> U8:
    shape = (height, width, channels)
    return np.random.default_rng(height * 41 + width).integers(0, 256, shape, np.uint8)


@given(old=st.tuples(SIDES, SIDES), new=st.tuples(SIDES, SIDES))
@settings(deadline=None)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_size_is_height_and_width(
    kernel: Resize, channels: int, old: tuple[int, int], new: tuple[int, int]
) -> None:
    resized = resize_image(noise(*old, channels), new, kernel)
    assert resized.shape == (*new, channels)
    assert resized.dtype == np.uint8
    flat = resize_image(np.full((*old, channels), 77, np.uint8), new, kernel)
    assert (flat == 77).all()


def test_area_is_the_mean_of_the_pixels_covered() -> None:
    image = noise(8, 12, 3)
    blocks = image.reshape(4, 2, 6, 2, 3).astype(np.float64).mean(axis=(1, 3))
    resized = resize_image(image, (4, 6), "area").astype(np.float64)
    assert np.abs(resized - blocks).max() <= 0.5
    expected = cv2.resize(image, (5, 3), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(resize_image(image, (3, 5), "area"), expected)


@pytest.mark.parametrize("size", [(10, 13), (40, 60)])
def test_bicubic_is_pillows(size: tuple[int, int]) -> None:
    image = noise(20, 30, 3)
    expected = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize_image(image, size, "pil-bicubic"), np.asarray(expected))
    grey = resize_image(image[:, :, :1], size, "pil-bicubic")
    np.testing.assert_array_equal(grey[:, :, 0], np.asarray(expected)[:, :, 0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_size_is_the_same_array(kernel: Resize) -> None:
    image, mask = noise(5, 6, 3), noise(5, 6, 1)[:, :, 0]
    assert resize_image(image, (5, 6), kernel) is image
    assert resize_mask(mask, (5, 6)) is mask


@given(old=st.tuples(SIDES, SIDES), new=st.tuples(SIDES, SIDES), channels=st.integers(1, 5))
@settings(deadline=None)
@pytest.mark.parametrize("kernel", KERNELS)
def test_it_is_written_where_it_is_wanted(
    kernel: Resize, old: tuple[int, int], new: tuple[int, int], channels: int
) -> None:
    page = np.full((3, *new, channels), 77, np.uint8)
    image = noise(*old, channels)
    assert np.shares_memory(resize_image(image, new, kernel, page[1]), page[1])
    np.testing.assert_array_equal(page[1], resize_image(image, new, kernel))
    assert (page[[0, 2]] == 77).all()


def test_very_long_images_are_resized() -> None:
    for kernel in KERNELS:
        assert resize_image(noise(2, 90_000, 1), (1, 45_000), kernel).shape == (1, 45_000, 1)


@given(old=st.tuples(SIDES, SIDES), new=st.tuples(SIDES, SIDES))
@settings(deadline=None)
def test_masks_are_resized_as_pillow_does(old: tuple[int, int], new: tuple[int, int]) -> None:
    colours = noise(*old, 3)
    expected = Image.fromarray(colours).resize(new[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resize_mask(colours, new), np.asarray(expected))
    one = resize_mask(colours[:, :, 0], new)
    np.testing.assert_array_equal(one, np.asarray(expected)[:, :, 0])
    bits = resize_mask(colours[:, :, 0] > 127, new)  # type: ignore[arg-type]
    np.testing.assert_array_equal(bits, one > 127)


def test_network_input_follows_the_spec(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(31, 45, 3)).save(path)
    spec = ModelSpec(channels=1, scale=0.5, resize="pil-bicubic")
    image, size = network_input(path, spec)
    assert size == (31, 45)
    expected = resize_image(read_image(path, 1), (15, 22), "pil-bicubic")
    np.testing.assert_array_equal(image, expected)
    from_bytes, _ = network_input(path.read_bytes(), spec)
    np.testing.assert_array_equal(from_bytes, image)


def test_a_single_pixel_stays_one() -> None:
    file = io.BytesIO()
    Image.new("RGB", (1, 1), (1, 2, 3)).save(file, format="PNG")
    image, size = network_input(file.getvalue(), ModelSpec(scale=0.5))
    assert image.tolist() == [[[1, 2, 3]]]
    assert size == (1, 1)


def test_bit_depth_is_passed_on() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16), 1600, np.uint16)).save(file, format="PNG")
    spec = ModelSpec(channels=1, scale=1)
    with pytest.raises(ImageError, match="--bit-depth"):
        network_input(file.getvalue(), spec)
    image, _ = network_input(file.getvalue(), spec, bit_depth=12)
    assert (image == 100).all()


def test_a_scale_that_passes_the_limit_is_an_error() -> None:
    file = io.BytesIO()
    Image.new("1", (2000, 2000)).save(file, format="PNG")
    with pytest.raises(ImageError, match=f"more than {MAX_PIXELS} pixels"):
        network_input(file.getvalue(), ModelSpec(channels=1, scale=8))
