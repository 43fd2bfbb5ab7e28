"""Whether a PNG is whole. Pillow passes over damaged and missing rows without a word."""

from __future__ import annotations

import io
import struct
import zlib

from PIL.PngImagePlugin import PngImageFile

_SIGNATURE = 8
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""First column, first row and the steps to the next, of each interlaced pass."""


def check_chunks(data: bytes) -> None:
    """Compare the checksum of every chunk; SyntaxError where one differs."""
    PngImageFile(io.BytesIO(data)).verify()


def lacks_rows(image: PngImageFile, data: bytes) -> bool:
    """Whether the compressed pixels end before the picture does; `image` is loaded.

    Missing rows stay zero, so only a picture whose last row is zero is decompressed again.
    """
    width, height, depth, kind, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    if not interlaced and image.crop((0, height - 1, width, height)).getbbox() is not None:
        return False
    bits = depth * _CHANNELS[kind]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    expected = sum(_pass_bytes(width, height, bits, *steps) for steps in passes)
    return len(zlib.decompressobj().decompress(_compressed_pixels(data), expected)) < expected


def _pass_bytes(width: int, height: int, bits: int, x: int, y: int, dx: int, dy: int) -> int:
    columns, rows = len(range(x, width, dx)), len(range(y, height, dy))
    return rows * (1 + (columns * bits + 7) // 8) if columns else 0


def _compressed_pixels(data: bytes) -> bytes:
    parts, start = [], _SIGNATURE
    while start < len(data):
        (length,) = struct.unpack_from(">I", data, start)
        if data[start + 4 : start + 8] == b"IDAT":
            parts.append(data[start + 8 : start + 8 + length])
        start += 12 + length
    return b"".join(parts)
