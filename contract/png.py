"""Whether a PNG is whole. Pillow passes over damaged and missing rows without a word."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

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

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_TURNING = (b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp", b"xmp")
"""The keywords of texts in which Pillow looks for an orientation."""


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


def may_be_turned(data: bytes) -> bool:
    """Whether any chunk may hold an orientation: Pillow decodes the pixels to find none."""
    return any(
        kind == b"eXIf" or (kind in _TEXTS and _keyword(data, start) in _TURNING)
        for kind, start, _ in _chunks(data)
    )


def _keyword(data: bytes, start: int) -> bytes:
    """Of a text: 79 bytes at most, ended by a zero."""
    return data[start : start + 80].partition(b"\0")[0]


def _compressed_pixels(data: bytes) -> bytes:
    found = _chunks(data)
    return b"".join(data[start:end] for kind, start, end in found if kind == b"IDAT")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte and end of the content of each chunk; what follows IEND is none."""
    start, kind = _SIGNATURE, b""
    while kind != b"IEND" and start + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        kind = data[start + 4 : start + 8]
        yield kind, start + 8, start + 8 + length
        start += 12 + length
