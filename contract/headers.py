"""What an image file is: kind, size and depth, read before any pixel is decoded."""

from __future__ import annotations

import io
import lzma
import re
import stat
import struct
import tokenize
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from .addresses import is_address, store_errors
from .errors import ImageError
from .files import read_whole
from .jpeg import check_tiff
from .png import check_chunks, lacks_rows, may_be_turned
from .types import Size

MAX_PIXELS = 178_956_970
"""More pixels than this are refused. It is the number at which Pillow too raises an error."""

MAX_BYTES = 8 * MAX_PIXELS
"""Files above this are refused: so many pixels take no more, in four samples of 16 bits each."""

_TIFF = rb"II[*+]\0|MM\0[*+]"

# Pillow's readers are called directly: its open() would also try some forty formats that are
# not supported here, and prints a warning for an image of more than half the limit.
_READERS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (rb"\xff\xd8\xff", JpegImageFile),
    (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    (rb"BM", BmpImageFile),
    (_TIFF, TiffImageFile),
    (rb"(?s)RIFF.{4}WEBP", WebPImageFile),
    (rb"GIF8[79]a", GifImageFile),
    (rb"P[1-6f]\s", PpmImageFile),
)

DECODE_ERRORS = (
    OSError,
    SyntaxError,  # what Pillow raises for a header that breaks its format's rules
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    tokenize.TokenError,  # what NumPy raises for a damaged header of .npy
    cv2.error,
    Image.DecompressionBombError,  # a GIF's frame that is larger than its picture
    Warning,  # Pillow's, where the user turned warnings into errors
)
"""What Pillow, cv2 and simplejpeg raise for files that are damaged."""

_PNM_HEADER = re.compile(rb"P[2356]" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)" + rb"\s")
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_FORMAT = 256, 257, 258, 339
_NO_PIXEL_FORMATS = {2: "signed integers", 3: "float pixels"}
ORIENTATION = 274
"""The tag of EXIF and TIFF."""
_TIFF_KIND, _TIFF_OTHER_KINDS = 254, 1 | 4
"""A picture in a TIFF file that is a smaller copy of another one (1), or its mask (4)."""


@dataclass(frozen=True)
class Picture:
    """An image file in memory; `image` has read its header and decodes its pixels on load."""

    name: str
    data: bytes
    image: ImageFile.ImageFile

    def error(self, why: str, *, seen: object = None, hint: str | None = None) -> ImageError:
        return ImageError(f"{self.name}: {why}", seen=seen, hint=hint)

    def load(self) -> ImageFile.ImageFile:
        """Decode the pixels, by Pillow."""
        if isinstance(self.image, TiffImageFile):
            check_tiff(self.image, self.data)
        self.image.load()
        if isinstance(self.image, PngImageFile) and lacks_rows(self.image, self.data):
            raise self.error("its pixels end before the picture does")
        return self.image

    @property
    def maximum(self) -> int:
        """The sample value that stands for white by the header; 255 for 8 bits and fewer."""
        if isinstance(self.image, PngImageFile):
            return 65535 if self.data[24] == 16 else 255
        if isinstance(self.image, TiffImageFile):
            bits: int = self.image.tag_v2.get(_TIFF_BITS, (1,))[0]
            return max(255, (1 << bits) - 1)
        header = _PNM_HEADER.match(self.data)
        return max(255, int(header[3])) if header else 255

    @property
    def pnm_header(self) -> tuple[int, int]:
        """Of a PGM or PPM file: the sample value of white, and where the samples begin."""
        header = _PNM_HEADER.match(self.data)
        if header is None:
            raise self.error("a damaged PGM or PPM header")
        return int(header[3]), header.end()

    @property
    def orientation(self) -> int:
        """The EXIF orientation that is left to apply, 1 to 8.

        Only true once the pixels are loaded: PNG may carry it after them, and Pillow turns TIFF
        by itself.
        """
        if isinstance(self.image, PngImageFile) and not may_be_turned(self.data):
            return 1
        return _exif_orientation(self.image)


def _exif_orientation(image: ImageFile.ImageFile) -> int:
    value = image.getexif().get(ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _reader_of(start: bytes) -> type[ImageFile.ImageFile] | None:
    """Of the kind of image that begins like this."""
    return next((r for signature, r in _READERS if re.match(signature, start)), None)


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn what the decoders raise into an ImageError that names the file."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"no memory to decode {name}", seen=error or None) from error
    except DECODE_ERRORS as error:
        seen = str(error) or type(error).__name__
        raise ImageError(f"{name} is damaged or incomplete", seen=seen) from error


def read_bytes(path: Path) -> bytes:
    """Read the whole file; ImageError says why not."""
    try:
        if is_address(path):
            with store_errors():
                return path.read_bytes()
        status = path.stat()
        mode = status.st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            # They could block, never end, or be a whole disk, whose size is said to be 0.
            raise ImageError(f"no image at {path}", seen="a pipe or a device")
        check_file_size(path, status.st_size)
        return read_whole(path, status.st_size)
    except MemoryError as error:
        raise ImageError(f"no memory to read {path}") from error
    except FileNotFoundError as error:
        raise ImageError(f"no image at {path}", seen="no such file") from error
    except IsADirectoryError as error:
        raise ImageError(f"no image at {path}", seen="a folder") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be opened", seen=error.strerror or error) from error


def stored_orientation(path: Path) -> int:
    """The EXIF orientation that a readable file states before its pixels, 1 to 8; else 1."""
    with suppress(*DECODE_ERRORS), path.open("rb") as file:
        reader = _reader_of(file.read(32))
        if reader is None:
            return 1
        file.seek(0)
        image = reader(file)
        if isinstance(image, PngImageFile) and "exif" not in image.info:
            return 1  # Pillow would decode the pixels to look behind them
        return _exif_orientation(image)
    return 1


def check_file_size(path: Path, size: int) -> None:
    """Raise ImageError for a file that would fill the memory, before it is read."""
    if size > MAX_BYTES:
        raise ImageError(
            f"{path} is larger than any image that is read",
            seen=f"{size} bytes",
            expected=f"at most {MAX_BYTES}",
            hint="cut it into smaller images",
        )


def open_picture(data: bytes, name: str) -> Picture:
    """Read the header. Call it within `decoding`; raises ImageError for what is no image."""
    if not data:
        raise ImageError(f"{name} is an empty file")
    reader = _reader_of(data)
    if reader is None:
        raise ImageError(
            f"{name} is not an image of a known kind",
            seen=f"{len(data)} bytes that begin {data[:12]!r}",
            expected="JPEG, PNG, BMP, TIFF, WebP, GIF, PGM, PPM or .npy",
        )
    if reader is TiffImageFile:
        _check_directories(data, name)
    picture = Picture(name, data, reader(io.BytesIO(data)))
    _check_size(picture)
    if data[:2] in (b"P2", b"P3") and not data[-1:].isspace():
        raise picture.error("it ends within a number, so that part of it may be missing")
    if isinstance(picture.image, PngImageFile):
        check_chunks(data)
    if isinstance(picture.image, BmpImageFile) and picture.image.mode == "1":
        return _two_greys(picture)
    return picture


def _two_greys(picture: Picture) -> Picture:
    """Pillow takes a BMP of two greys for one of 1 bit a pixel, however many bits it has.

    One of more bits goes on as the 1-bit PNG of what cv2 reads.
    """
    data = picture.data
    old = struct.unpack_from("<I", data, 14)[0] == 12  # OS/2's header
    (bits,) = struct.unpack_from("<H", data, 24 if old else 28)
    if bits == 1:
        return picture
    (start,) = struct.unpack_from("<I", data, 10)
    packed = not old and struct.unpack_from("<I", data, 30)[0] != 0
    width, height = picture.image.size
    whole = len(data) >= start + (width * bits + 31) // 32 * 4 * height
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if packed or not whole or grey is None:
        raise picture.error("a BMP of two greys that cannot be read", seen=f"{bits} bits a pixel")
    png = cv2.imencode(".png", grey, [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes()
    return Picture(picture.name, png, PngImageFile(io.BytesIO(png)))


def is_tiff(data: bytes) -> bool:
    return re.match(_TIFF, data) is not None


def tiff_size(data: bytes, name: str) -> Size:
    """The (H, W) of a TIFF's first page, upright, however many samples a pixel has."""
    page = tiff_directories(data, name)[0]
    _check_samples(page, name)
    width, height = page[_TIFF_WIDTH], page[_TIFF_HEIGHT]
    check_pixels(width, height, name)
    return (width, height) if page.get(ORIENTATION, 1) in range(5, 9) else (height, width)


def _check_directories(data: bytes, name: str) -> None:
    """Refuse what Pillow reads as something else, or without a word on what is wrong."""
    first, *others = tiff_directories(data, name)
    pages = 1 + sum(not page.get(_TIFF_KIND, 0) & _TIFF_OTHER_KINDS for page in others)
    if pages > 1:
        raise ImageError(
            f"{name} holds several pages: which of them is meant is not known",
            seen=f"{pages} pages",
            expected="one",
            hint=f"tiffsplit {name}   makes a file of each",
        )
    _check_samples(first, name)


def _check_samples(page: ImageFileDirectory_v2, name: str) -> None:
    for form in page.get(_TIFF_FORMAT, ()):
        if form in _NO_PIXEL_FORMATS:
            raise ImageError(
                f"{name} holds {_NO_PIXEL_FORMATS[form]}: their range is not known",
                expected="unsigned integers of 8 or 16 bits",
            )


def tiff_directories(data: bytes, name: str) -> list[ImageFileDirectory_v2]:
    """One a page, and one for each smaller copy that is kept beside it.

    Where damage has made the chain a loop, the last one's `next` is not 0.
    """
    file = io.BytesIO(data)
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    start = slice(8, 16) if data[2:4] in (b"+\0", b"\0+") else slice(4, 8)
    offset = int.from_bytes(data[start], order)
    found: dict[int, ImageFileDirectory_v2] = {}
    while offset and offset not in found:
        if offset + 2 > len(data):
            raise ImageError(f"{name} is incomplete", seen="a TIFF without its directory")
        file.seek(offset)
        directory = found[offset] = ImageFileDirectory_v2(data[: start.stop])
        directory.load(file)
        offset = directory.next
    return list(found.values())


def _check_size(picture: Picture) -> None:
    check_pixels(*picture.image.size, picture.name)


def check_pixels(width: int, height: int, name: str) -> None:
    """Raise ImageError for an image of none, or of more than are read."""
    seen = f"{height}×{width}"
    if width < 1 or height < 1:
        raise ImageError(f"{name}: an image without pixels", seen=seen)
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: more than {MAX_PIXELS} pixels", seen=seen, hint="cut it into smaller images"
        )
