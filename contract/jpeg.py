"""Whether the JPEGs inside a TIFF are whole. Its readers show damaged ones without a word."""

from __future__ import annotations

from collections.abc import Sequence

import simplejpeg
from PIL.TiffImagePlugin import TiffImageFile

TIFF_OLD_JPEG, TIFF_JPEG = 6, 7
"""What a TIFF names its compression where it is JPEG; the old way has its tables elsewhere."""

_COMPRESSION, _TABLES = 259, 347
_STRIPS, _TILES = (273, 279), (324, 325)
"""The tags of where its parts lie and of how many bytes each has."""
_COLOURS = {"Gray": "GRAY", "YCbCr": "GRAY", "RGB": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}
_END = b"\xff\xd9"


def check_tiff(image: TiffImageFile, data: bytes) -> None:
    """As check_segments, of a file that Pillow reads; of another compression there is nothing."""
    tags = image.tag_v2
    if tags.get(_COMPRESSION) == TIFF_JPEG:
        offsets, counts = _TILES if _TILES[0] in tags else _STRIPS
        check_segments(data, tags[offsets], tags[counts], tags.get(_TABLES, b""))


def check_segments(
    data: bytes, offsets: Sequence[int], counts: Sequence[int], tables: bytes
) -> None:
    """Decode each strip or tile of a TIFF by itself; ValueError where one is damaged.

    tables: what its tag 347 holds, a JPEG of tables alone that goes before each of them.
    """
    for at, count in zip(offsets, counts, strict=True):
        segment = data[at : at + count]
        whole = tables.removesuffix(_END) + segment[2:] if tables else segment
        colours = _COLOURS.get(simplejpeg.decode_jpeg_header(whole)[2])
        if colours:
            simplejpeg.decode_jpeg(whole, colours, strict=True)
        else:
            check_ends(data, [at], [count])


def check_ends(data: bytes, offsets: Sequence[int], counts: Sequence[int]) -> None:
    """Raise ValueError for a strip or tile that does not end as a JPEG does."""
    ends = (at + count for at, count in zip(offsets, counts, strict=True))
    if any(data[end - 2 : end] != _END for end in ends):
        raise ValueError("a JPEG in it without its end")
