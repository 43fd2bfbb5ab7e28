"""Pictures in every encoding that is read, of mixed sizes, in a tree of folders."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import steel
from unetrt.contract.types import U8

SIZES = [(40, 32), (33, 57), (64, 48), (48, 48), (5, 30), (40, 32)]


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def _deep(pixels: U8) -> Image.Image:
    return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)


def _rgb(pixels: U8) -> Image.Image:
    return Image.fromarray(np.repeat(pixels, 3, axis=2))


def _grey(pixels: U8) -> Image.Image:
    return Image.fromarray(pixels[..., 0])


ENCODINGS: dict[str, tuple[str, Callable[[U8], bytes]]] = {
    "grey png": (".png", lambda p: _saved(_grey(p), "PNG")),
    "rgb png": (".png", lambda p: _saved(_rgb(p), "PNG")),
    "deep png": (".png", lambda p: _saved(_deep(p), "PNG")),
    "palette png": (".png", lambda p: _saved(_grey(p).quantize(64), "PNG")),
    "one-bit png": (".png", lambda p: _saved(_grey(p).convert("1"), "PNG")),
    "alpha png": (".png", lambda p: _saved(_rgb(p).convert("RGBA"), "PNG")),
    "grey jpeg": (".jpg", lambda p: _saved(_grey(p), "JPEG")),
    "rgb jpeg": (".jpeg", lambda p: _saved(_rgb(p), "JPEG", progressive=True)),
    "cmyk jpeg": (".jpg", lambda p: _saved(_rgb(p).convert("CMYK"), "JPEG")),
    "bmp": (".bmp", lambda p: _saved(_rgb(p), "BMP")),
    "gif": (".gif", lambda p: _saved(_grey(p), "GIF")),
    "webp": (".webp", lambda p: _saved(_rgb(p), "WEBP", lossless=True)),
    "lossy webp": (".webp", lambda p: _saved(_rgb(p), "WEBP")),
    "pgm": (".pgm", lambda p: _saved(_grey(p), "PPM")),
    "ppm": (".ppm", lambda p: _saved(_rgb(p), "PPM")),
    "tiff": (".tif", lambda p: _saved(_grey(p), "TIFF")),
    "lzw tiff": (".tiff", lambda p: _saved(_rgb(p), "TIFF", compression="tiff_lzw")),
    "deep tiff": (".tif", lambda p: _saved(_deep(p), "TIFF")),
}


def encoded(index: int) -> tuple[str, bytes]:
    """Suffix and bytes of picture `index`, its encoding and size by the index."""
    suffix, encode = list(ENCODINGS.values())[index % len(ENCODINGS)]
    return suffix, encode(steel(index, *SIZES[index % len(SIZES)]))


def write_mixed(folder: Path, count: int) -> list[Path]:
    """Pictures 0 to count - 1 in three folders; a name with a space, one with an umlaut."""
    paths = []
    for index in range(count):
        suffix, data = encoded(index)
        path = folder / ("", "a b", "a b/ü")[index % 3] / f"{index:04}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        paths.append(path)
    return paths
