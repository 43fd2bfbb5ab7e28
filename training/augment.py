"""Random changes of one image and its mask; the mask moves with its image."""

from __future__ import annotations

import math

import cv2
import numpy as np

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
    image: U8, truth: U8, window: Size, size: Size, rng: np.random.Generator
) -> tuple[U8, U8]:
    """Cut a window at a random place out of (h, w, C) and (h, w), then resize it to `size`.

    A window that is larger than the image is filled by the image's edge, without a class.
    """
    image, truth = _padded(image, truth, window)
    height, width = window
    top = int(rng.integers(truth.shape[0] - height + 1))
    left = int(rng.integers(truth.shape[1] - width + 1))
    image = image[top : top + height, left : left + width]
    truth = truth[top : top + height, left : left + width]
    if window == size:
        return image, truth
    # Both measure from pixel centres, so that edges in the mask stay on those in the image.
    resized = by_bands(image, lambda bands: _resized(bands, size))
    moved = cv2.resize(truth, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return resized, np.asarray(moved, np.uint8)


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
    if transposed and truth.shape[0] == truth.shape[1]:
        image, truth = image.swapaxes(0, 1), truth.swapaxes(0, 1)
    return image, truth


def random_brightness_contrast(image: U8, rng: np.random.Generator) -> U8:
    """Change brightness and contrast of (h, w, C)."""
    gain, shift = rng.uniform(-1, 1, 2)
    values = (np.arange(256) - 127.5) * (1 + GAIN * gain) + 127.5 + SHIFT * shift
    table = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image.reshape(len(image), -1), table), np.uint8).reshape(image.shape)


def _padded(image: U8, truth: U8, window: Size) -> tuple[U8, U8]:
    below, right = (max(0, side - length) for side, length in zip(window, truth.shape, strict=True))
    if not below and not right:
        return image, truth
    image = np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")
    return image, np.pad(truth, ((0, below), (0, right)), constant_values=NO_CLASS)
