"""Every lossless encoding of a picture gives one array; what is not sure is an error."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageOps

from unetrt.contract.errors import ImageError
from unetrt.contract.images import MAX_PIXELS, read_image
from unetrt.contract.types import U8

Encode = Callable[[npt.NDArray[Any]], bytes]

GREY = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9))
RGB = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))
BITS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=20))

TIFFS: tuple[dict[str, Any], ...] = tuple(
    {"format": "TIFF", "compression": c}
    for c in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma")
)
WEBP: dict[str, Any] = {"format": "WebP", "lossless": True, "exact": True}


def saved(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def by_pillow(mode: str, **options: Any) -> Encode:
    return lambda pixels: saved(Image.fromarray(pixels).convert(mode), **options)


def with_alpha(mode: str, **options: Any) -> Encode:
    """Alpha of every value, 0 among them."""

    def encode(pixels: U8) -> bytes:
        image = Image.fromarray(pixels).convert(mode[:-1])
        alpha = np.arange(image.width * image.height) * 37 % 256
        image.putalpha(Image.fromarray(alpha.reshape(image.size[::-1]).astype(np.uint8)))
        return saved(image, **options)

    return encode


def palette_image(pixels: U8) -> Image.Image:
    """A palette in an order that is not that of the values."""
    rgb = np.asarray(Image.fromarray(pixels).convert("RGB"))
    colours, indices = np.unique(rgb.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray((len(colours) - 1 - indices).reshape(rgb.shape[:2]).astype(np.uint8))
    image.putpalette(colours[::-1].tobytes())
    return image


def palette(**options: Any) -> Encode:
    return lambda pixels: saved(palette_image(pixels), **options)


def deep(suffix: str) -> Encode:
    """257 times the 8-bit value, by cv2."""

    def encode(pixels: U8) -> bytes:
        ordered = pixels[:, :, ::-1] if pixels.ndim == 3 else pixels
        ok, data = cv2.imencode(suffix, ordered.astype(np.uint16) * 257)
        assert ok
        return data.tobytes()

    return encode


def deep_with_alpha(suffix: str) -> Encode:
    def encode(pixels: U8) -> bytes:
        rgb = np.asarray(Image.fromarray(pixels).convert("RGB"))
        bgra = np.dstack([rgb[:, :, ::-1], np.full(rgb.shape[:2], 9, np.uint8)])
        ok, data = cv2.imencode(suffix, bgra.astype(np.uint16) * 257)
        assert ok
        return data.tobytes()

    return encode


COLOUR: dict[str, Encode] = {
    "png": by_pillow("RGB", format="PNG"),
    "png rgba": with_alpha("RGBA", format="PNG"),
    "png palette": palette(format="PNG"),
    "png palette, one colour transparent": palette(format="PNG", transparency=0),
    "png palette, alpha": palette(format="PNG", transparency=b"\x00\x80"),
    "png rgb, one colour transparent": by_pillow("RGB", format="PNG", transparency=(1, 2, 3)),
    "png 16": deep(".png"),
    "png 16 rgba": deep_with_alpha(".png"),
    "bmp": by_pillow("RGB", format="BMP"),
    "bmp rgba": with_alpha("RGBA", format="BMP"),
    "bmp palette": palette(format="BMP"),
    "webp": by_pillow("RGB", **WEBP),
    "webp rgba": with_alpha("RGBA", **WEBP),
    "ppm": by_pillow("RGB", format="PPM"),
    "ppm 16": deep(".ppm"),
    "gif": palette(format="GIF"),
    "gif transparent": palette(format="GIF", transparency=0),
    "tiff 16": deep(".tiff"),
    "tiff 16 rgba": deep_with_alpha(".tiff"),
    "tiff palette": palette(format="TIFF"),
    **{f"tiff {t['compression']}": by_pillow("RGB", **t) for t in TIFFS},
    **{f"tiff rgba {t['compression']}": with_alpha("RGBA", **t) for t in TIFFS},
}

GREYS: dict[str, Encode] = {
    **COLOUR,
    "png l": by_pillow("L", format="PNG"),
    "png la": with_alpha("LA", format="PNG"),
    "png 16 l": deep(".png"),
    "png 16 la": lambda pixels: png_la16(pixels),
    "bmp l": by_pillow("L", format="BMP"),
    "pgm": by_pillow("L", format="PPM"),
    "pgm 16": deep(".pgm"),
    "pgm plain": lambda pixels: pnm(b"P2", pixels, 255, plain=True),
    "pgm 16 plain": lambda pixels: pnm(b"P2", pixels * np.uint16(257), 65535, plain=True),
    "gif l": by_pillow("L", format="GIF"),
    "tiff 16 l": deep(".tiff"),
    "tiff 16 l, big-endian": lambda p: tiff(p.astype(np.uint16) * 257, order=">"),
    "tiff 16 l, white is zero": lambda p: tiff(65535 - p.astype(np.uint16) * 257, photometric=0),
    "tiff l, white is zero": lambda p: tiff(255 - p, photometric=0),
    "tiff la": with_alpha("LA", format="TIFF"),
    **{f"tiff l {t['compression']}": by_pillow("L", **t) for t in TIFFS},
}
GREYS["png 16"] = lambda pixels: deep(".png")(np.repeat(pixels[:, :, None], 3, axis=2))
GREYS["tiff 16"] = lambda pixels: deep(".tiff")(np.repeat(pixels[:, :, None], 3, axis=2))
GREYS["ppm 16"] = lambda pixels: deep(".ppm")(np.repeat(pixels[:, :, None], 3, axis=2))

ONE_BIT: dict[str, Encode] = {
    "png": by_pillow("1", format="PNG"),
    "bmp": by_pillow("1", format="BMP"),
    "pbm": by_pillow("1", format="PPM"),
    "gif": by_pillow("1", format="GIF"),
    "tiff": by_pillow("1", format="TIFF"),
    "tiff group4": by_pillow("1", format="TIFF", compression="group4"),
    "8 bits": lambda bits: saved(Image.fromarray(bits.astype(np.uint8) * 255), format="PNG"),
}


def png(
    width: int, height: int, depth: int, kind: int, rows: bytes, palette: bytes | None = None
) -> bytes:
    """A PNG from rows that each begin with their filter's number."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    colours = b"" if palette is None else chunk(b"PLTE", palette)
    pixels = colours + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def png_la16(pixels: U8) -> bytes:
    height, width = pixels.shape
    grey = pixels.astype(np.uint16) * 257
    samples = np.dstack([grey, np.full_like(grey, 7)]).astype(">u2")
    return png(width, height, 16, 4, b"".join(b"\0" + row.tobytes() for row in samples))


def pnm(magic: bytes, pixels: npt.NDArray[Any], maximum: int, plain: bool = False) -> bytes:
    head = b"%s\n# a comment\n%d %d\n%d\n" % (magic, pixels.shape[1], pixels.shape[0], maximum)
    if plain:
        return head + " ".join(str(v) for v in pixels.ravel().tolist()).encode() + b"\n"
    return head + pixels.astype(np.uint8 if maximum < 256 else ">u2").tobytes()


def tiff(
    samples: npt.NDArray[Any],
    *,
    photometric: int = 1,
    order: str = "<",
    form: int = 1,
    deflate: bool = False,
) -> bytes:
    """A grey TIFF of one strip, its directory before its pixels."""
    raw = samples.astype(samples.dtype.newbyteorder(order)).tobytes()  # type: ignore[arg-type]
    raw = zlib.compress(raw) if deflate else raw
    height, width = samples.shape
    entries = {
        256: width,
        257: height,
        258: samples.itemsize * 8,
        259: 8 if deflate else 1,
        262: photometric,
        273: 8 + 2 + 12 * 10 + 4,
        277: 1,
        278: height,
        279: len(raw),
        339: form,
    }
    body = b"".join(struct.pack(order + "HHII", tag, 4, 1, v) for tag, v in entries.items())
    start = b"II*\0" if order == "<" else b"MM\0*"
    head = struct.pack(order + "IH", 8, len(entries))
    return start + head + body + bytes(4) + raw


def grey_formula(rgb: U8) -> U8:
    """ITU-R 601 in 16-bit fixed point, rounded: what Pillow's 'L' is."""
    weighted = rgb.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((weighted + 0x8000) >> 16).astype(np.uint8)


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


def scene(height: int = 37, width: int = 50) -> U8:
    """A picture with smooth and busy parts, for lossy formats."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 60, (height, width))
    planes = (x * 255 // width, y * 255 // height, (x * y + noise) % 256)
    return np.dstack(planes).astype(np.uint8)


JPEGS = {
    "4:2:0": saved(Image.fromarray(scene()), format="JPEG"),
    "4:4:4": saved(Image.fromarray(scene()), format="JPEG", subsampling=0),
    "progressive": saved(Image.fromarray(scene()), format="JPEG", progressive=True),
    "rgb": saved(Image.fromarray(scene()), format="JPEG", keep_rgb=True),
    "grey": saved(Image.fromarray(scene()).convert("L"), format="JPEG"),
    "cmyk": saved(Image.fromarray(scene()).convert("CMYK"), format="JPEG"),
}


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
    for kind in ("GIF", "TIFF", "PNG", "WebP"):
        options: dict[str, Any] = {"lossless": True} if kind == "WebP" else {}
        data = saved(frames[0], format=kind, save_all=True, append_images=frames[1:], **options)
        assert (read_image(data, 1) == 10).all(), kind


WHOLE: dict[str, bytes] = {
    **{f"jpeg {kind}": data for kind, data in JPEGS.items()},
    "jpeg restart": saved(Image.fromarray(scene()), format="JPEG", restart_marker_blocks=2),
    "tiff directory first": tiff(scene()[:, :, 2]),
    "tiff deflate, directory first": tiff(scene()[:, :, 2], deflate=True),
    "tiff 16, directory first": tiff(scene()[:, :, 2].astype(np.uint16) * 257),
    "gif grey": GREYS["gif l"](scene()[:, :, 2]),
    "bmp grey": GREYS["bmp l"](scene()[:, :, 2]),
    "bmp 1 bit": ONE_BIT["bmp"](scene()[:, :, 2] > 99),
    "pbm": ONE_BIT["pbm"](scene()[:, :, 2] > 99),
    "pgm 16": GREYS["pgm 16"](scene()[:, :, 2]),
    "pgm plain": GREYS["pgm plain"](scene()[:, :, 2]),
    "pgm 16 plain": GREYS["pgm 16 plain"](scene()[:, :, 2]),
    "pgm of 200": pnm(b"P5", scene()[:, :, 2] % 200, 200),
    "webp lossy": saved(Image.fromarray(scene()), format="WebP"),
    **{
        kind: COLOUR[kind](scene())
        for kind in COLOUR
        if "palette" not in kind and "gif" not in kind
    },
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", WHOLE)
def test_a_truncated_file_is_an_error_or_lacks_nothing(kind: str) -> None:
    whole = WHOLE[kind]
    expected = read_image(whole, 3)
    cuts = sorted(
        {len(whole) * i // 23 for i in range(23)} | {len(whole) - i for i in range(1, 14)}
    )
    refused = 0
    for cut in cuts:
        try:
            image = read_image(whole[:cut], 3)
        except ImageError:
            refused += 1
        else:
            np.testing.assert_array_equal(image, expected, f"cut at {cut} of {len(whole)}")
    assert refused >= 20


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=100)
def test_a_flipped_bit_in_png_is_noticed(where: float, bit: int) -> None:
    whole = bytearray(COLOUR["png"](scene(16, 16)))
    # Of the last chunk, which is empty, Pillow does not compare the sum.
    whole[int(where * (len(whole) - 12))] ^= 1 << bit
    with pytest.raises(ImageError):
        read_image(bytes(whole), 3)


FUZZED = {
    **WHOLE,
    "gif": COLOUR["gif"](scene(12, 12)),
    "png palette": COLOUR["png palette"](scene(12, 12)),
}


@pytest.mark.parametrize("kind", FUZZED)
def test_damage_raises_nothing_but_image_errors(kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(40):
            data = np.frombuffer(FUZZED[kind], np.uint8).copy()
            early = rng.random(3) < 0.7
            places = rng.integers(0, np.where(early, min(200, len(data)), len(data)))
            data[places] = rng.integers(0, 256, 3)
            with suppress(ImageError):
                read_image(data.tobytes(), 3)


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
    ("highest", "depth"), [(3, 9), (511, 9), (512, 10), (1023, 10), (4095, 12)]
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


def test_bit_depth_leaves_8_bits_alone() -> None:
    data = GREYS["png l"](scene()[:, :, 0])
    np.testing.assert_array_equal(read_image(data, 1, bit_depth=12), read_image(data, 1))


@pytest.mark.parametrize("bit_depth", [0, 8, 17])
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


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    text, empty, pipe = tmp_path / "a.png", tmp_path / "b.jpg", tmp_path / "c.png"
    text.write_text("not a picture")
    empty.touch()
    os.mkfifo(pipe)
    cases = {
        text: "not an image of a known kind",
        empty: "empty file",
        pipe: "a pipe or a device",
        tmp_path: "a folder",
        tmp_path / "none.png": "no such file",
    }
    for path, message in cases.items():
        with pytest.raises(ImageError, match=message) as caught:
            read_image(path, 3)
        assert str(path) in str(caught.value)


def test_a_file_and_its_bytes_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "wrong suffix.bmp"
    path.write_bytes(JPEGS["4:2:0"])
    np.testing.assert_array_equal(read_image(path, 3), read_image(JPEGS["4:2:0"], 3))


def test_images_without_pixels_are_refused() -> None:
    for data in (png(0, 5, 8, 0, b""), b"P5\n0 3\n255\n", b"GIF89a" + bytes(7) + b";"):
        with pytest.raises(ImageError):
            read_image(data, 1)


def test_more_pixels_than_the_limit_are_refused() -> None:
    with pytest.raises(ImageError, match=f"more than {MAX_PIXELS} pixels"):
        read_image(png(40_000, 40_000, 8, 0, b"\0"), 1)
    with pytest.raises(ImageError, match="more than"):
        read_image(b"P5\n%d 1\n255\n\0" % (MAX_PIXELS + 1), 1)


def test_a_gif_frame_above_the_limit_is_refused() -> None:
    data = bytearray(GREYS["gif l"](scene()[:, :, 2]))
    frame = data.rindex(struct.pack("<BHHHH", 0x2C, 0, 0, 50, 37))
    data[frame + 5 : frame + 9] = b"\xff" * 4
    with pytest.raises(ImageError):
        read_image(bytes(data), 1)


def test_threads_read_the_same() -> None:
    files = [JPEGS["4:2:0"], COLOUR["png"](scene()), COLOUR["webp"](scene()), WHOLE["ppm 16"]]
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


def test_channels_are_one_or_three() -> None:
    with pytest.raises(ValueError, match="channels"):
        read_image(JPEGS["grey"], 4)


def interlaced(data: bytes) -> bytes:
    """Mark a PNG of one filtered row after another as Adam7, with its header's sum made right."""
    header = data[16:28] + b"\x01"
    return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]


@pytest.mark.parametrize(
    ("kind", "depth", "width"), [(0, 8, 6), (2, 8, 18), (4, 16, 24), (0, 1, 1)]
)
def test_png_rows_that_are_missing_are_noticed(kind: int, depth: int, width: int) -> None:
    """The chunks and their sums are right, but the pixels end early."""
    row = b"\0" + bytes([255] * width)
    assert read_image(png(6, 5, depth, kind, row * 5), 3).any()
    with pytest.raises(ImageError, match="end before the picture"):
        read_image(png(6, 5, depth, kind, row * 4), 3)


def test_black_png_rows_are_not_missing() -> None:
    assert not read_image(png(6, 5, 8, 0, bytes(7 * 5)), 1).any()


def test_interlaced_png() -> None:
    """The seven passes of a 3 × 3 picture; two of them are empty."""
    passes = [b"\0\1", b"\0\2", b"\0\3\4", b"\0\5\0\6", b"\0\7\x08\x09"]
    whole = interlaced(png(3, 3, 8, 0, b"".join(passes)))
    expected = [[1, 5, 2], [7, 8, 9], [3, 6, 4]]
    assert read_image(whole, 1)[:, :, 0].tolist() == expected
    with pytest.raises(ImageError, match="end before the picture"):
        read_image(interlaced(png(3, 3, 8, 0, b"".join(passes[:-1]))), 1)


def test_an_index_past_the_palette_is_an_error() -> None:
    colours = bytes([10, 20, 30, 40, 50, 60])
    whole = png(2, 1, 8, 3, b"\0\0\1", palette=colours)
    assert read_image(whole, 3).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    with pytest.raises(ImageError, match="palette lacks"):
        read_image(png(2, 1, 8, 3, b"\0\0\2", palette=colours), 3)
