"""Images of any number of channels: NumPy arrays, TIFF files of many bands, pictures with alpha."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from .depth import bytes_from_samples
from .errors import ImageError
from .headers import MAX_BYTES, MAX_PIXELS, is_tiff, open_picture
from .modules import import_module
from .types import U8, Size

_NUMPY = b"\x93NUMPY"
_WITH_ALPHA = {"LA": 2, "RGBA": 4}
_ORIENTATION = 274
_BLACK_IS_ZERO, _RGB = 1, 2
"""TIFF 6.0, PhotometricInterpretation: the only ones whose samples are channels as they stand."""


def is_array(data: bytes) -> bool:
    """Whether these are the bytes of an .npy file."""
    return data.startswith(_NUMPY)


def array_size(data: bytes, name: str) -> Size:
    """The (H, W) of an .npy image, without its pixels. Call it within `decoding`."""
    height, width = _array_header(data, name)[0][:2]
    return height, width


def pixels_from_array(data: bytes, name: str, bit_depth: int | None) -> U8:
    """An .npy file of uint8 or uint16 (H, W) or (H, W, C) as uint8 of that shape."""
    shape, fortran, dtype, start = _array_header(data, name)
    values = np.frombuffer(data, dtype, math.prod(shape), start)
    pixels = values.reshape(shape, order="F" if fortran else "C")
    return _eight_bits(pixels, name, bit_depth)


def read_bands(data: bytes, name: str, channels: int, bit_depth: int | None) -> tuple[U8, int]:
    """A picture as uint8 (H, W, channels), not yet upright, and its EXIF orientation.

    A TIFF of as many samples a pixel, or of as many grey pages; or a picture whose alpha is the
    last of 2 or 4 channels. Call it within `decoding`. Raises ImageError for any other number,
    and UserError where the package that reads such a TIFF is missing.
    """
    if is_tiff(data):
        return _read_tiff(data, name, channels, bit_depth)
    picture = open_picture(data, name)
    if picture.maximum > 255:
        raise picture.error(
            "pictures of more than 8 bits are read with 1 or 3 channels",
            hint="a TIFF or .npy file of the bands",
        )
    image = picture.load()
    seen = _WITH_ALPHA.get(image.mode, len(image.getbands()))
    if image.mode not in _WITH_ALPHA or seen != channels:
        raise wrong_channels(name, seen, channels)
    return np.asarray(image), picture.orientation


def wrong_channels(name: str, seen: int, channels: int) -> ImageError:
    """What to raise for an image of other channels than the network's."""
    return ImageError(
        f"{name} has another number of channels than the network",
        seen=seen,
        expected=channels,
        hint="--channels N   of train, for a network that takes them",
    )


def _array_header(data: bytes, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, dtype and where the values begin; checked before any is read."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ImageError(f"{name}: an .npy file of version {version}", expected="1.0 or 2.0")
    shape, fortran, dtype = read(file)
    if dtype.kind != "u" or dtype.itemsize > 2:
        raise ImageError(
            f"{name} holds {dtype}: the range of its values is not known",
            expected="uint8 or uint16",
        )
    if len(shape) not in (2, 3) or 0 in shape:
        raise ImageError(
            f"{name} is no image", seen=f"shape {shape}", expected="(H, W) or (H, W, channels)"
        )
    _check_count(shape[:2], math.prod(shape) * dtype.itemsize, name)
    return shape, fortran, dtype, file.tell()


def _read_tiff(data: bytes, name: str, channels: int, bit_depth: int | None) -> tuple[U8, int]:
    tifffile = import_module("tifffile")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = [page for page in file.pages if not page.is_reduced and not page.is_mask]
        for page in pages:
            _check_page(page, name)
        first = pages[0]
        seen = len(pages) if len(pages) > 1 else first.samplesperpixel
        if seen != channels or (len(pages) > 1 and any(p.samplesperpixel > 1 for p in pages)):
            raise wrong_channels(name, seen, channels)
        size = (first.imagelength, first.imagewidth)
        if any((page.imagelength, page.imagewidth) != size for page in pages):
            raise ImageError(f"{name}: its pages are of several sizes")
        _check_count(size, channels * math.prod(size) * first.dtype.itemsize, name)
        try:
            planes = [_plane(page, name, bit_depth) for page in pages]
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise ImageError(
                f"{name} is compressed in a way that needs imagecodecs",
                seen=error,
                hint="pip install 'unetrt[bands]'",
            ) from error
    orientation = first.tags.valueof(_ORIENTATION, 1)
    pixels = planes[0] if len(planes) == 1 else np.stack(planes, axis=2)
    if pixels.shape != (*size, channels):
        raise ImageError(f"{name} is damaged", seen=pixels.shape, expected=(*size, channels))
    return pixels, orientation if orientation in range(1, 9) else 1


def _check_page(page: Any, name: str) -> None:
    if page.dtype is None or page.dtype.kind != "u" or page.dtype.itemsize > 2:
        raise ImageError(
            f"{name} holds {page.dtype}: the range of its values is not known",
            expected="unsigned integers of 8 or 16 bits",
        )
    if page.bitspersample not in (8, 16) or page.photometric not in (_BLACK_IS_ZERO, _RGB):
        raise ImageError(
            f"{name}: this form of TIFF is not read as bands",
            seen=f"{page.bitspersample} bits, photometric {page.photometric}",
            expected="8 or 16 bits, black is zero",
        )


def _plane(page: Any, name: str, bit_depth: int | None) -> U8:
    """(H, W) or (H, W, C), whichever way the samples of a pixel are stored."""
    pixels = page.asarray()
    if page.samplesperpixel > 1 and page.planarconfig == 2:
        pixels = np.moveaxis(pixels, 0, 2)
    return _eight_bits(pixels, name, bit_depth)


def _eight_bits(pixels: Any, name: str, bit_depth: int | None) -> U8:
    if pixels.dtype.itemsize == 1:
        return np.asarray(pixels, np.uint8)
    return bytes_from_samples(pixels.astype(np.uint16), 65535, bit_depth, name)


def _check_count(size: tuple[int, ...], count: int, name: str) -> None:
    """count: bytes of all samples."""
    if math.prod(size) > MAX_PIXELS or count > MAX_BYTES:
        raise ImageError(
            f"{name}: more than {MAX_PIXELS} pixels or {MAX_BYTES} bytes of them",
            seen="×".join(map(str, size[::-1])),
            hint="cut it into tiles",
        )
