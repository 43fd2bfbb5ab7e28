"""Image files → uint8 arrays: the same picture gives the same array in any lossless encoding.

What cannot be read for sure is an ImageError that says why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile

from .bands import array_size, is_array, pixels_from_array, read_bands, wrong_channels
from .depth import Samples, bytes_from_samples
from .headers import MAX_PIXELS as MAX_PIXELS
from .headers import Picture, decoding, is_tiff, open_picture, read_bytes, tiff_size
from .types import U8, Size

# Dropping alpha is part of these conversions; none of them blends with a background.
_TARGETS = {
    "1": "L",
    "L": "L",
    "LA": "L",
    "P": "RGB",
    "PA": "RGB",
    "RGB": "RGB",
    "RGBA": "RGB",
    "RGBX": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
}

_JPEG_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_NAMES = {"I": "32-bit integers", "F": "float pixels", "LAB": "CIELAB colours"}

_TIFF_PHOTOMETRIC = 262
_PNM_COMMENT = re.compile(rb"#[^\r\n]*")


def read_image(source: Path | bytes, channels: int, *, bit_depth: int | None = None) -> U8:
    """Read a file, or its bytes, as uint8 (H, W, channels), upright; 1 is grey, 3 is RGB.

    Another number of channels is that of a TIFF's bands, of an array's last axis (.npy), or of a
    picture with its alpha. bit_depth: the depth (8 to 16) of data stored in 16-bit files; without
    it the high byte counts. Raises ImageError naming the file and why.
    """
    return read_reduced(source, channels, None, bit_depth=bit_depth)[0]


def read_shown(source: Path | bytes, channels: int, *, bit_depth: int | None = None) -> U8:
    """Read an image as RGB (H, W, 3), to be looked at: of many bands the first three."""
    if channels in (1, 3):
        return read_image(source, 3, bit_depth=bit_depth)
    return shown(read_image(source, channels, bit_depth=bit_depth))


def shown(image: U8) -> U8:
    """(H, W, C) → (H, W, 3): the first three bands, or the first as grey where there are fewer."""
    return image[:, :, :3] if image.shape[2] >= 3 else rgb_from_grey(image[:, :, 0])


def image_size(path: Path) -> Size:
    """(H, W) of a file, upright, by its header. ImageError for one that says it is no image."""
    data, name = read_bytes(path), str(path)
    with decoding(name):
        if is_array(data):
            return array_size(data, name)
        return tiff_size(data, name) if is_tiff(data) else _upright_size(open_picture(data, name))


def read_reduced(
    source: Path | bytes,
    channels: int,
    least: Callable[[Size], Size] | None,
    *,
    bit_depth: int | None = None,
) -> tuple[U8, Size]:
    """As read_image, with the file's own (H, W); a JPEG may come at a half, a quarter or less.

    least: the file's (H, W) → the size that what comes must not be below. None: the whole image.
    """
    if channels < 1:
        raise ValueError(f"channels must be at least 1, not {channels}")
    if bit_depth is not None and not 8 <= bit_depth <= 16:
        raise ValueError(f"bit_depth must be 8 to 16, not {bit_depth}")
    name = "image in memory" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_bytes(source)
    with decoding(name):
        if is_array(data) or channels not in (1, 3):
            image = _bands(data, name, channels, bit_depth)
            return image, (image.shape[0], image.shape[1])
        picture = open_picture(data, name)
        pixels = _pixels(picture, bit_depth, least)
        upright = turn_upright(pixels, picture.orientation)
        return np.ascontiguousarray(_with_channels(upright, channels)), _upright_size(picture)


def _bands(data: bytes, name: str, channels: int, bit_depth: int | None) -> U8:
    """uint8 (H, W, channels), upright."""
    if not is_array(data):
        pixels, orientation = read_bands(data, name, channels, bit_depth)
        return np.ascontiguousarray(turn_upright(pixels, orientation))
    pixels = pixels_from_array(data, name, bit_depth)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    seen = 1 if pixels.ndim == 2 else pixels.shape[2]
    if seen == channels or {seen, channels} == {1, 3}:
        if channels in (1, 3):
            pixels = _with_channels(pixels, channels)
        return np.ascontiguousarray(pixels)
    raise wrong_channels(name, seen, channels)


def _upright_size(picture: Picture) -> Size:
    width, height = picture.image.size
    return (width, height) if _is_turned(picture) else (height, width)


def _is_turned(picture: Picture) -> bool:
    return picture.orientation >= 5


def turn_upright(pixels: U8, orientation: int) -> U8:
    """Apply an EXIF orientation, 1 to 8, to (H, W) or (H, W, C); a view."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def deep_samples(picture: Picture) -> Samples:
    """Read the values of a file of more than 8 bits as stored, (H, W) or RGB, alpha dropped.

    Pillow keeps only the high byte of 16-bit RGB, so those come from cv2. Where the high bytes
    of the two differ, one of them has misread the file, and it is refused.
    """
    image = picture.image
    if picture.maximum > 65535:
        raise picture.error("pixels of more than 16 bits: their range is not known")
    if isinstance(image, PpmImageFile):
        return _pnm_samples(picture)
    picture.load()
    if image.mode.startswith("I;16"):
        samples = np.asarray(image).astype(np.uint16)
        inverted = isinstance(image, TiffImageFile) and image.tag_v2[_TIFF_PHOTOMETRIC] == 0
        return picture.maximum - samples if inverted else samples
    samples = _cv2_samples(picture)
    if not np.array_equal(samples >> 8, np.asarray(image.convert("RGB"))):
        raise picture.error("this encoding of deep pixels is not supported", seen=image.mode)
    return samples


def _pixels(
    picture: Picture, bit_depth: int | None, least: Callable[[Size], Size] | None = None
) -> U8:
    """(H, W) or (H, W, 3), not yet turned upright."""
    if picture.maximum > 255:
        samples = deep_samples(picture)
        return bytes_from_samples(samples, picture.maximum, bit_depth, picture.name)
    image = picture.image
    if isinstance(image, JpegImageFile) and image.mode in _JPEG_SPACES:
        # Bit-equal to Pillow and four times as fast; strict: a premature end is an error.
        space = _JPEG_SPACES[image.mode]
        height, width, factor = _least(picture, least) if least else (0, 0, 1)
        pixels: U8 = simplejpeg.decode_jpeg(
            picture.data,
            space,
            min_height=height,
            min_width=width,
            min_factor=factor,
            strict=True,
        )
        if space == "CMYK":  # inks are stored as Adobe does, 255 for none
            return np.asarray(Image.fromarray(255 - pixels, "CMYK").convert("RGB"))
        return pixels[:, :, 0] if space == "GRAY" else pixels
    if isinstance(image, PpmImageFile) and image.mode in ("L", "RGB"):
        # Not by Pillow, which takes values above the maximum for white.
        return _scaled(_pnm_samples(picture), picture.pnm_header[0])
    return _from_pillow(picture)


def _least(picture: Picture, least: Callable[[Size], Size]) -> tuple[int, int, int]:
    """The least (height, width) as they are stored; a factor below 2 would save no time."""
    size = least(_upright_size(picture))
    return (*(size[::-1] if _is_turned(picture) else size), 2)


def _from_pillow(picture: Picture) -> U8:
    image = picture.image
    if image.mode not in _TARGETS:
        raise picture.error(
            f"{_NAMES.get(image.mode, 'pixels')} cannot be turned into 8 bits for sure",
            seen=f"Pillow mode {image.mode}",
        )
    picture.load()
    if image.mode == "P":
        _check_indices(picture)
    # The alpha of a palette or of one colour is dropped too; Pillow would warn of it.
    image.info.pop("transparency", None)
    return np.asarray(image.convert(_TARGETS[image.mode]))


def _check_indices(picture: Picture) -> None:
    """Refuse an index past the palette's end, which Pillow shows as black."""
    highest = int(np.asarray(picture.image).max())
    colours = len(picture.image.getpalette() or ()) // 3
    if highest >= colours:
        raise picture.error("colours that its palette lacks", seen=f"{highest} of {colours}")


def _cv2_samples(picture: Picture) -> Samples:
    """(H, W, 3) uint16, RGB; grey+alpha has equal channels."""
    encoded = np.frombuffer(picture.data, np.uint8)
    decoded = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        raise picture.error(
            "this encoding of deep pixels is not supported", seen=picture.image.mode
        )
    return decoded[:, :, 2::-1].astype(np.uint16)


def _pnm_samples(picture: Picture) -> Samples:
    width, height = picture.image.size
    shape = (height, width, 3) if picture.image.mode == "RGB" else (height, width)
    maximum, start = picture.pnm_header
    if picture.data[:2] in (b"P2", b"P3"):
        texts = _PNM_COMMENT.sub(b"", picture.data[start:]).split()[: math.prod(shape)]
        samples = np.array(texts).astype(np.int64)
    else:
        width_of_one = ">u2" if maximum > 255 else np.uint8
        samples = np.frombuffer(picture.data, width_of_one, math.prod(shape), start)
    if samples.size and samples.min() < 0:
        raise picture.error("values below 0", seen=int(samples.min()))
    if samples.size and samples.max() > maximum:
        raise picture.error(
            "values above the maximum of its header", seen=f"{samples.max()} of {maximum}"
        )
    return samples.astype(np.uint16).reshape(shape)


def _scaled(samples: Samples, maximum: int) -> U8:
    """0 to `maximum`, 255 at most, to 0 to 255, rounded as Pillow does."""
    if maximum == 255:
        return samples.astype(np.uint8)
    return np.rint(samples / maximum * 255).astype(np.uint8)


def _with_channels(pixels: U8, channels: int) -> U8:
    """(H, W) or (H, W, 3) → (H, W, channels)."""
    if channels == 1:
        return (pixels if pixels.ndim == 2 else grey_from_rgb(pixels))[:, :, None]
    return rgb_from_grey(pixels) if pixels.ndim == 2 else pixels


def rgb_from_grey(grey: U8) -> U8:
    """uint8 (H, W) → (H, W, 3), equal channels.

    By cv2, which lets other threads run meanwhile; np.repeat takes thirty times as long and holds
    the interpreter's lock: sixteen threads that read grey photographs were as fast as two.
    """
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(grey), cv2.COLOR_GRAY2RGB), np.uint8)


def grey_from_rgb(pixels: U8) -> U8:
    """uint8 (H, W, 3) → (H, W) by Pillow's weights, ITU-R 601; equal channels keep their value."""
    # A grey picture that is stored as RGB is the usual case: to see that takes half as long.
    grey: U8 = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
    if np.array_equal(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), pixels):
        return grey
    return np.asarray(Image.fromarray(pixels).convert("L"))
