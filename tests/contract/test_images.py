"""Every lossless encoding of a picture gives one array; what is not sure is an error."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile, PngInfo

from tests.contract.encodings import (
    COLOUR,
    GREYS,
    JPEGS,
    ONE_BIT,
    WEBP,
    Encode,
    deep,
    deep_with_alpha,
    grey_formula,
    png,
    saved,
    scene,
)
from unetrt.contract.errors import ImageError
from unetrt.contract.images import image_size, read_image
from unetrt.contract.types import U8

GREY = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9))


RGB = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


BITS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=20))


@given(pixels=RGB)
@settings(deadline=None, max_examples=30)
def test_colour_pictures_are_the_same_in_every_encoding(pixels: U8) -> None:
    for name, encode in COLOUR.items():
        data = encode(pixels)
        np.testing.assert_array_equal(read_image(data, 3), pixels, name)
        np.testing.assert_array_equal(read_image(data, 1)[:, :, 0], grey_formula(pixels), name)


@given(pixels=GREY)
@settings(deadline=None, max_examples=30)
def test_grey_pictures_are_the_same_in_every_encoding(pixels: U8) -> None:
    for name, encode in GREYS.items():
        data = encode(pixels)
        np.testing.assert_array_equal(read_image(data, 1), pixels[:, :, None], name)
        np.testing.assert_array_equal(
            read_image(data, 3), np.repeat(pixels[:, :, None], 3, axis=2), name
        )


@given(bits=BITS)
@settings(deadline=None, max_examples=30)
def test_one_bit_pictures_are_black_and_white(bits: npt.NDArray[np.bool_]) -> None:
    for name, encode in ONE_BIT.items():
        expected = bits.astype(np.uint8)[:, :, None] * 255
        np.testing.assert_array_equal(read_image(encode(bits), 1), expected, name)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encode", [COLOUR["png"], GREYS["png l"], COLOUR["bmp"]])
def test_arrays_are_contiguous_bytes(encode: Encode, channels: int) -> None:
    image = read_image(encode(np.zeros((5, 4, 3), np.uint8)), channels)
    assert image.shape == (5, 4, channels)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_equals_pillow(kind: str) -> None:
    with Image.open(io.BytesIO(JPEGS[kind])) as image:
        rgb = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(JPEGS[kind], 3), rgb)
    np.testing.assert_array_equal(read_image(JPEGS[kind], 1)[:, :, 0], grey_formula(rgb))


def test_cmyk_tiff_equals_pillow() -> None:
    cmyk = Image.fromarray(scene()).convert("CMYK")
    expected = np.asarray(cmyk.convert("RGB"))
    np.testing.assert_array_equal(read_image(saved(cmyk, format="TIFF"), 3), expected)


TURNED: dict[str, dict[str, Any]] = {
    "jpeg": {"format": "JPEG"},
    "jpeg grey": {"format": "JPEG"},
    "jpeg cmyk": {"format": "JPEG"},
    "png": {"format": "PNG"},
    "webp": WEBP,
    "tiff": {"format": "TIFF"},
    "tiff lzw": {"format": "TIFF", "compression": "tiff_lzw"},
}


MODES = {"jpeg grey": "L", "jpeg cmyk": "CMYK"}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", TURNED)
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(
        Image.fromarray(scene()).convert(MODES.get(kind, "RGB")), exif=exif, **TURNED[kind]
    )
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_image(data, 3), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_orientation_is_applied_to_16_bits(suffix: str, channels: int, orientation: int) -> None:
    pixels = scene() if channels == 3 else scene()[:, :, 2]
    exif = Image.Exif()
    exif[274] = orientation
    upright = saved(Image.fromarray(pixels), format="PNG", exif=exif)
    data = with_orientation(deep(suffix)(pixels), orientation)
    np.testing.assert_array_equal(read_image(data, channels), read_image(upright, channels))


def with_orientation(data: bytes, orientation: int) -> bytes:
    """Add the tag to a PNG, as eXIf behind its header, or to a TIFF."""
    if data[:1] != b"\x89":
        return with_tag(data, 274, orientation)
    exif = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 274, 3, 1, orientation, 0)
    checksum = struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    return data[:33] + struct.pack(">I", len(exif)) + b"eXIf" + exif + checksum + data[33:]


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """Set a tag of a little-endian TIFF, in a new directory at its end."""
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = {}
    for place in range(start + 2, start + 2 + 12 * count, 12):
        entries[struct.unpack_from("<H", data, place)[0]] = data[place : place + 12]
    entries[tag] = struct.pack("<HHII", tag, 3, 1, value)
    directory = struct.pack("<H", len(entries)) + b"".join(entries[t] for t in sorted(entries))
    padded = data + bytes(len(data) % 2)
    return padded[:4] + struct.pack("<I", len(padded)) + padded[8:] + directory + bytes(4)


def test_16_bit_colours_that_two_decoders_read_differently_are_refused() -> None:
    """Colours multiplied by their alpha: Pillow divides them again, cv2 does not."""
    associated_alpha = with_tag(deep_with_alpha(".tiff")(scene()), 338, 1)
    with pytest.raises(ImageError, match="not supported"):
        read_image(associated_alpha, 3)


def test_only_the_first_frame_counts() -> None:
    frames = [Image.fromarray(np.full((4, 5), v, np.uint8)) for v in (10, 200)]
    for kind in ("GIF", "PNG", "WebP"):
        options: dict[str, Any] = {"lossless": True} if kind == "WebP" else {}
        data = saved(frames[0], format=kind, save_all=True, append_images=frames[1:], **options)
        assert (read_image(data, 1) == 10).all(), kind


def test_threads_read_the_same() -> None:
    files = [
        JPEGS["4:2:0"],
        COLOUR["png"](scene()),
        COLOUR["webp"](scene()),
        COLOUR["ppm 16"](scene()),
    ]
    expected = [read_image(data, 3) for data in files]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: read_image(files[i % 4], 3), range(80)))
    for index, image in enumerate(found):
        np.testing.assert_array_equal(image, expected[index % 4])


def test_large_images_pass_without_a_warning(tmp_path: Path) -> None:
    """9500 × 9500 is above the number at which Pillow warns, below the limit."""
    side = 9500
    white = bytes(side * (1 + (side + 7) // 8))
    path = tmp_path / "large.png"
    path.write_bytes(png(side, side, 1, 0, white))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path, 1).shape == (side, side, 1)


def test_transparency_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (
            "png palette, one colour transparent",
            "png palette, alpha",
            "gif transparent",
        ):
            read_image(COLOUR[kind](scene(9, 9)), 3)


def test_there_is_a_channel_at_least() -> None:
    with pytest.raises(ValueError, match="channels"):
        read_image(JPEGS["grey"], 0)


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("text", ["", "XML:com.adobe.xmp", "Raw profile type exif", "exif"])
@pytest.mark.parametrize("last", [False, True])
def test_the_size_of_a_png_is_that_of_the_upright_image(
    text: str, last: bool, tmp_path: Path
) -> None:
    """Its orientation may stand in a text, and behind the pixels."""
    exif = Image.Exif()
    exif[274] = 6
    raw, info = exif.tobytes(), PngInfo()
    if text == "Raw profile type exif":
        info.add_text(text, f"\nexif\n{len(raw)}\n{raw.hex()}\n", zip=True)
    elif text == "exif":
        info.add_text(text, raw.decode("latin-1"))
    elif text:
        info.add_itxt(text, XMP)
    options: dict[str, Any] = {"pnginfo": info} if text else {"exif": exif}
    data = saved(Image.fromarray(scene()), format="PNG", **options)
    if last:
        data = behind_pixels(data)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert image_size(path) == (50, 37)
    assert read_image(path, 3).shape == (50, 37, 3)


def behind_pixels(data: bytes) -> bytes:
    """Move what stands between a PNG's header and its pixels to its end."""
    start, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    return data[:33] + data[start:end] + data[33:start] + data[end:]


def test_the_size_of_a_png_is_read_without_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    info = PngInfo()
    info.add_text("Software", "a camera")
    Image.fromarray(scene()).save(path, pnginfo=info)

    def load(image: PngImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImageFile, "load", load)
    assert image_size(path) == (37, 50)
