"""Random changes of one image and its mask; the mask moves with its image."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from ..contract.resize import by_bands
from ..contract.types import NO_CLASS, U8, Size

GAIN, SHIFT = 0.25, 32.0
"""Contrast changes by a factor of 1 ± GAIN about mid-grey, brightness by ± SHIFT of 255."""

SCALED, SMALLEST, LARGEST = 0.5, 0.8, 1.25
"""The share of the images that are scaled, and by how much."""


def draw_scale(rng: np.random.Generator) -> float:
    """Give 1 for half of the images; for the others shrink as often as enlarge."""
    if rng.random() >= SCALED:
        return 1.0
    return math.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST)))


def random_resized_crop(
    image: U8, truth: U8, window: Size, sizes: tuple[Size, Size], rng: np.random.Generator
) -> tuple[U8, U8]:
    """Cut one window at a random place out of an image (h, w, C) and its truth (H, W).

    window: in the image's pixels. sizes: to which what is cut of either is resized.
    A window that is larger than the image is filled by the image's edge, without a class.
    """
    full = image.shape[:2]
    starts = [_random_start(length, side, rng) for length, side in zip(full, window, strict=True)]
    size, truth_size = sizes
    moved = truth
    for axis, start in enumerate(starts):
        # From pixel centres, as the image is resized: edges of both stay on each other.
        places = (np.arange(truth_size[axis]) + 0.5) * (window[axis] / truth_size[axis]) + start
        moved = _taken(moved, np.floor(places * (truth.shape[axis] / full[axis])).astype(int), axis)
    cut = image
    for axis, start in enumerate(starts):
        inside = np.arange(start, start + window[axis]).clip(0, full[axis] - 1)
        cut = _taken(cut, inside, axis)
    if window == size:
        return cut, moved
    return by_bands(cut, lambda bands: _resized(bands, size)), moved


def _random_start(length: int, side: int, rng: np.random.Generator) -> int:
    """Of a side within the length; below 0 where the side is the longer one."""
    spare = length - side
    return int(rng.integers(min(0, spare), max(0, spare) + 1))


def _taken(array: U8, places: NDArray[np.int_], axis: int) -> U8:
    """Rows or columns; NO_CLASS for places outside. Neighbours in a row are no copy."""
    length = array.shape[axis]
    first, last = int(places[0]), int(places[-1])
    if first >= 0 and last < length:
        if last - first == len(places) - 1 and (np.diff(places) == 1).all():
            return array[first : last + 1] if axis == 0 else array[:, first : last + 1]
        return array.take(places, axis)
    taken = array.take(places.clip(0, length - 1), axis)
    outside = (places < 0) | (places >= length)
    if axis == 0:
        taken[outside] = NO_CLASS
    else:
        taken[:, outside] = NO_CLASS
    return taken


def _resized(image: U8, size: Size) -> U8:
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8).reshape(*size, image.shape[2])


def random_flip_turn(image: U8, truth: U8, rng: np.random.Generator) -> tuple[U8, U8]:
    """Flip, and turn where the image is a square, to one of its four or eight positions."""
    rows, columns, transposed = rng.random(3) < 0.5
    if rows:
        image, truth = image[::-1], truth[::-1]
    if columns:
        image, truth = image[:, ::-1], truth[:, ::-1]
    if transposed and image.shape[0] == image.shape[1] and truth.shape[0] == truth.shape[1]:
        image, truth = image.swapaxes(0, 1), truth.swapaxes(0, 1)
    return image, truth


def random_brightness_contrast(image: U8, rng: np.random.Generator) -> U8:
    """Change brightness and contrast of (h, w, C)."""
    gain, shift = rng.uniform(-1, 1, 2)
    values = (np.arange(256) - 127.5) * (1 + GAIN * gain) + 127.5 + SHIFT * shift
    table = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image.reshape(len(image), -1), table), np.uint8).reshape(image.shape)
