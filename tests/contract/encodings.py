"""Pictures in every encoding that is read: what the tests of images have in common."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from unetrt.contract.types import U8

Encode = Callable[[npt.NDArray[Any]], bytes]


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
