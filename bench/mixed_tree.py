"""A tree of pictures as a folder of years looks: kinds, sizes and names mixed, some files bad."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

BAD_EVERY = 40
FOLDERS = ("", "line 1", "line 1/2026.11", "ü")
NAMES = ("{:06}", "part.{:06}.v1", "picture {:06}")
ORIENTATION = 274
"""The tag of EXIF."""

Encode = Callable[[Image.Image], bytes]


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def _deep(image: Image.Image) -> Image.Image:
    """16 bits: 257 times the 8, of which the darkest is raised, else it might be 12 bits' black."""
    pixels = np.asarray(image.convert("L")).astype(np.uint16) * 257
    pixels[0, 0] = max(pixels[0, 0], 16 * 257)
    return Image.fromarray(pixels)


def _turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return _saved(image, "JPEG", quality=92, exif=exif)


def _float(image: Image.Image) -> bytes:
    return _saved(Image.fromarray(np.asarray(image.convert("L")).astype(np.float32)), "TIFF")


def _flipped(data: bytes) -> bytes:
    """A bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


KINDS: dict[str, tuple[str, Encode]] = {
    "grey JPEG": (".jpg", lambda i: _saved(i.convert("L"), "JPEG", quality=92)),
    "grey PNG": (".png", lambda i: _saved(i.convert("L"), "PNG")),
    "RGB JPEG": (".jpeg", lambda i: _saved(i, "JPEG", quality=92, progressive=True)),
    "RGB PNG": (".png", lambda i: _saved(i, "PNG")),
    "JPEG turned by EXIF": (".JPG", _turned),
    "RGBA PNG": (".png", lambda i: _saved(i.convert("RGBA"), "PNG")),
    "16-bit PNG": (".png", lambda i: _saved(_deep(i), "PNG")),
    "palette PNG": (".png", lambda i: _saved(i.quantize(64), "PNG")),
    "grey TIFF": (".tif", lambda i: _saved(i.convert("L"), "TIFF")),
    "RGB TIFF, LZW": (".tiff", lambda i: _saved(i, "TIFF", compression="tiff_lzw")),
    "16-bit TIFF": (".tif", lambda i: _saved(_deep(i), "TIFF")),
    "BMP": (".bmp", lambda i: _saved(i, "BMP")),
    "WebP": (".webp", lambda i: _saved(i, "WEBP")),
}

BAD: dict[str, tuple[str, Encode]] = {
    "bad: half a JPEG": (".jpg", lambda i: (d := _saved(i, "JPEG"))[: len(d) // 2]),
    "bad: empty": (".png", lambda i: b""),
    "bad: a PNG with a flipped bit": (".png", lambda i: _flipped(_saved(i, "PNG"))),
    "bad: text": (".jpg", lambda i: b"no image\n"),
    "bad: float TIFF": (".tif", _float),
    "bad: half a PNG": (".png", lambda i: (d := _saved(i, "PNG"))[: len(d) // 2]),
}

SIZES: tuple[Callable[[int, int], tuple[int, int]], ...] = (
    lambda w, h: (w, h),
    lambda w, h: (w - 1, h - 3),
    lambda w, h: (w // 2 + 1, h // 2),
    lambda w, h: (w * 3 // 2, h),
    lambda w, h: (w, 7),
)
"""Few, as cameras have: a file of each costs what a size costs an engine."""


def write_mixed_tree(sources: Sequence[Path], count: int, folder: Path) -> Counter[str]:
    """Write `count` files below the folder; how many there are of each kind. No two runs differ."""
    found: Counter[str] = Counter()
    for index in range(count):
        bad = index % BAD_EVERY == BAD_EVERY - 1
        kinds, number = (BAD, index // BAD_EVERY) if bad else (KINDS, index)
        kind = list(kinds)[number % len(kinds)]
        suffix, encode = kinds[kind]
        with Image.open(sources[index % len(sources)]) as source:
            image = source.convert("RGB")
        # Divided, so that each kind comes in each size.
        width, height = SIZES[index // len(KINDS) % len(SIZES)](*image.size)
        image = image.resize((max(1, width), max(1, height)))
        place = folder / FOLDERS[index % len(FOLDERS)]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{NAMES[index % len(NAMES)].format(index)}{suffix}").write_bytes(encode(image))
        found[kind] += 1
    return found
