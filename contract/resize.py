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

AT_ONCE = 1 << 18
"""Bytes that are copied without letting other threads run meanwhile: some 20 µs."""


def resize_image(image: U8, size: Size, kernel: Resize, out: U8 | None = None) -> U8:
    """uint8 (H, W, C) → uint8 (*size, C); the image itself where it has that size already.

    out: contiguous, of the size and the channels; it is written and returned.
    """
    if out is not None:
        return _resize_into(out, image, kernel)
    if image.shape[:2] == size:
        return image
    resize = _resize_by_area if kernel == "area" else _resize_by_bicubic
    if kernel == "pil-bicubic" and image.shape[2] in (2, 4):
        return resize(image, size)  # the reference's arrays of 2 and 4 channels have alpha last
    return by_bands(image, lambda bands: resize(bands, size).reshape(*size, bands.shape[2]))


def _resize_into(out: U8, image: U8, kernel: Resize) -> U8:
    """As resize_image. cv2 resizes grey and RGB without a copy; Pillow has memory of its own."""
    height, width, channels = out.shape
    resized = image
    if image.shape != out.shape:
        if kernel == "area" and channels in (1, 3):
            dst = out[:, :, 0] if channels == 1 else out
            resized = _resize_by_area(image, (height, width), dst).reshape(out.shape)
        else:
            resized = resize_image(image, (height, width), kernel)
    if not np.may_share_memory(resized, out):
        _copy(resized, out)
    return out


def _copy(image: U8, out: U8) -> None:
    """As np.copyto, which gives the interpreter's lock away for it, and waits to have it back."""
    if image.nbytes > AT_ONCE or not image.flags.c_contiguous:
        np.copyto(out, image)
    else:
        out.reshape(-1).data[:] = image.reshape(-1).data


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
    height, width = image.shape[:2]
    size = checked_input_size((height, width), spec, source)
    return resize_image(image, size, spec.resize), (height, width)


def checked_input_size(full: Size, spec: ModelSpec, source: Path | bytes) -> Size:
    """(h, w) of the network input of an image (H, W). ImageError, naming it, for one too large."""
    size = spec.input_size(full)
    if size[0] * size[1] > MAX_PIXELS:
        name = "image in memory" if isinstance(source, bytes) else source
        raise ImageError(
            f"{name}: at scale {spec.scale} it has more than {MAX_PIXELS} pixels",
            seen=f"{size[0]}×{size[1]}",
        )
    return size


def _resize_by_area(image: U8, size: Size, out: U8 | None = None) -> U8:
    resized = cv2.resize(image, size[::-1], dst=out, interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)


def _resize_by_bicubic(image: U8, size: Size) -> U8:
    """As the reference does: Pillow, which widens the kernel to shrink, and weighs by alpha."""
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC))
