"""Images of any number of channels: NumPy arrays, TIFF files of many bands, pictures with alpha."""

from __future__ import annotations

import io
import itertools
import logging
import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from .depth import bytes_from_samples
from .errors import ImageError
from .headers import MAX_BYTES, ORIENTATION, check_pixels, is_tiff, open_picture, tiff_directories
from .jpeg import TIFF_JPEG, TIFF_OLD_JPEG, check_ends, check_segments
from .modules import INSTALL, import_module
from .types import U8, Size

ARRAY_HEADERS = threading.Lock()
"""Held while NumPy reads a header of an .npy file, which it does by ast.literal_eval.

Python 3.11 keeps the depth of that recursion once for all threads: two at a time may end in
"SystemError: AST constructor recursion depth mismatch".
"""

_NUMPY = b"\x93NUMPY"
_COLOURS = {"P": "a palette", "PA": "a palette", "CMYK": "inks", "YCbCr": "YCbCr", "LAB": "CIELAB"}
"""Pillow's modes whose bands are not channels as they stand."""
_SEPARATE = 2
"""TIFF 6.0, PlanarConfiguration: a plane for each sample."""
_BLACK_IS_ZERO, _RGB = 1, 2
"""TIFF 6.0, PhotometricInterpretation: the only ones whose samples are channels as they stand."""

# What it tells of damaged files is told here, by name; where nobody has asked for more.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


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
    if image.mode in _COLOURS:
        raise picture.error(
            f"{_COLOURS[image.mode]}, which is read with 1 or 3 channels",
            hint="a TIFF or .npy file of the bands",
        )
    if len(image.getbands()) != channels:
        raise wrong_channels(name, len(image.getbands()), channels)
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
    with ARRAY_HEADERS:
        shape, fortran, dtype = read(file)
    if dtype.kind != "u" or dtype.itemsize > 2:
        raise ImageError(
            f"{name} holds {dtype}: the range of its values is not known",
            expected="uint8 or uint16",
        )
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ImageError(
            f"{name} is no image", seen=f"shape {shape}", expected="(H, W) or (H, W, channels)"
        )
    _check_count(shape, dtype.itemsize, name)
    return shape, fortran, dtype, file.tell()


def _read_tiff(data: bytes, name: str, channels: int, bit_depth: int | None) -> tuple[U8, int]:
    tifffile = import_module("tifffile")
    directories = tiff_directories(data, name)
    if directories[-1].next:
        raise ImageError(f"{name} is damaged", seen="a TIFF whose pages form a loop")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        found = list(itertools.islice(file.pages, len(directories)))
        if len(found) < len(directories):
            raise ImageError(f"{name} is damaged", seen=f"{len(found)} of its pages")
        pages = [page for page in found if not page.is_reduced and not page.is_mask]
        if not pages:
            raise ImageError(f"{name} is no image", seen="a TIFF of nothing but smaller copies")
        first = pages[0]
        for page in pages:
            _check_page(page, first, len(data), name)
        seen = len(pages) * first.samplesperpixel
        if seen != channels:
            raise wrong_channels(name, seen, channels)
        size = (first.imagelength, first.imagewidth)
        _check_count((*size, channels), first.dtype.itemsize, name)
        pixels = np.concatenate([_plane(page, size, data, name) for page in pages], axis=2)
    orientation = first.tags.valueof(ORIENTATION, 1)
    bands = _eight_bits(pixels, name, bit_depth)
    return bands, orientation if orientation in range(1, 9) else 1


def _check_page(page: Any, first: Any, length: int, name: str) -> None:
    """Refuse what is no band as it stands, and what tifffile would fill with black."""
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
    kinds = [(p.imagelength, p.imagewidth, p.samplesperpixel, p.dtype) for p in (page, first)]
    if kinds[0] != kinds[1] or (page is not first and page.samplesperpixel > 1):
        raise ImageError(f"{name}: its pages are not the bands of one image")
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    whole = len(page.dataoffsets) == len(page.databytecounts) == math.prod(page.chunked)
    if not whole or any(at < 1 or n < 1 or at + n > length for at, n in segments):
        raise ImageError(f"{name} is incomplete", seen="a TIFF that lacks a part of its pixels")


def _plane(page: Any, size: Size, data: bytes, name: str) -> npt.NDArray[np.generic]:
    """(H, W, samples of a pixel), whichever way these are stored."""
    if page.compression == TIFF_JPEG:
        check_segments(data, page.dataoffsets, page.databytecounts, page.jpegtables or b"")
    elif page.compression == TIFF_OLD_JPEG:
        check_ends(data, page.dataoffsets, page.databytecounts)
    try:
        pixels = np.asarray(page.asarray())
    except (ValueError, ImportError) as error:
        if "imagecodecs" not in str(error):
            raise
        raise ImageError(
            f"{name} is compressed in a way that needs imagecodecs",
            seen=error,
            hint=INSTALL["imagecodecs"],
        ) from error
    if page.samplesperpixel == 1:
        pixels = pixels[..., None]
    elif page.planarconfig == _SEPARATE:
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.shape != (*size, page.samplesperpixel):
        raise ImageError(f"{name} is damaged", seen=f"pixels of shape {pixels.shape}")
    return pixels


def _eight_bits(pixels: Any, name: str, bit_depth: int | None) -> U8:
    if pixels.dtype.itemsize == 1:
        return np.asarray(pixels, np.uint8)
    return bytes_from_samples(pixels.astype(np.uint16), 65535, bit_depth, name)


def _check_count(shape: tuple[int, ...], itemsize: int, name: str) -> None:
    """Raise ImageError for more than is read, before any of it takes memory."""
    check_pixels(shape[1], shape[0], name)
    if math.prod(shape) * itemsize > MAX_BYTES:
        raise ImageError(
            f"{name}: more than {MAX_BYTES} bytes of pixels",
            seen="×".join(map(str, shape)),
            hint="cut it into smaller images",
        )
