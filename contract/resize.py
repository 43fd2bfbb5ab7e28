"""Image → network input. Training, evaluation and every engine resize by these functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .errors import ImageError
from .headers import MAX_PIXELS
from .images import read_image
from .spec import ModelSpec, Resize
from .types import U8, Size


def resize_image(image: U8, size: Size, kernel: Resize) -> U8:
    """uint8 (H, W, C) → uint8 (*size, C); the image itself where it has that size already."""
    if image.shape[:2] == size:
        return image
    resize = _resize_by_area if kernel == "area" else _resize_by_bicubic
    if kernel == "pil-bicubic" and image.shape[2] in (2, 4):
        return resize(image, size)  # the reference's arrays of 2 and 4 channels have alpha last
    return by_bands(image, lambda bands: resize(bands, size).reshape(*size, bands.shape[2]))


def by_bands(image: U8, change: Callable[[U8], U8]) -> U8:
    """Apply `change`, (H, W, C) → (h, w, C), to grey and RGB at once, to others band by band.

    cv2 refuses some work on more than four channels, and rounds other work differently.
    """
    if image.shape[2] in (1, 3):
        return change(image)
    bands = np.split(image, image.shape[2], axis=2)
    return np.concatenate([change(np.ascontiguousarray(band)) for band in bands], axis=2)


def resize_mask(mask: U8, size: Size) -> U8:
    """(H, W) or (H, W, 3), uint8 or bool, → `size` by the nearest pixel, values unchanged."""
    if mask.shape[:2] == size:
        return mask
    resized = Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)
    return np.asarray(resized)


def network_input(
    source: Path | bytes, spec: ModelSpec, *, bit_depth: int | None = None
) -> tuple[U8, Size]:
    """Read a file, or its bytes, as uint8 (h, w, C) for the network, with its own (H, W).

    bit_depth: in place of the spec's.
    Raises ImageError as `read_image` does.
    """
    image = read_image(source, spec.channels, bit_depth=spec.depth(bit_depth))
    return resized_input(image, spec, source)


def resized_input(
    image: U8, spec: ModelSpec, source: Path | bytes, full: Size | None = None
) -> tuple[U8, Size]:
    """What network_input gives of an image (H, W, C) that was read from `source`.

    full: (H, W) of an image that was read at a smaller size.
    """
    height, width = full or image.shape[:2]
    size = spec.input_size((height, width))
    if size[0] * size[1] > MAX_PIXELS:
        name = "image in memory" if isinstance(source, bytes) else source
        raise ImageError(
            f"{name}: at scale {spec.scale} it has more than {MAX_PIXELS} pixels",
            seen=f"{size[0]}×{size[1]}",
        )
    return resize_image(image, size, spec.resize), (height, width)


def _resize_by_area(image: U8, size: Size) -> U8:
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)


def _resize_by_bicubic(image: U8, size: Size) -> U8:
    """As the reference does: Pillow, which widens the kernel to shrink, and weighs by alpha."""
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC))
