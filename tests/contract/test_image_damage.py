"""Files that are cut, damaged, empty or no image: an error, or nothing that is wrong."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.contract.encodings import (
    COLOUR,
    GREYS,
    JPEGS,
    ONE_BIT,
    png,
    pnm,
    saved,
    scene,
    tiff,
)
from unetrt.contract import headers
from unetrt.contract.errors import ImageError
from unetrt.contract.headers import MAX_BYTES
from unetrt.contract.images import MAX_PIXELS, read_image

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


def by_tifffile(pixels: npt.NDArray[np.uint8], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, compression="jpeg", **options)
    return file.getvalue()


IN_TIFF = {
    "strips and tables": saved(Image.fromarray(scene(256, 256)), format="TIFF", compression="jpeg"),
    "tiles": by_tifffile(scene(256, 256), photometric="rgb", tile=(64, 64)),
    "grey strips": by_tifffile(scene(256, 256)[:, :, 2], rowsperstrip=32),
    "inks": saved(
        Image.fromarray(scene(256, 256)).convert("CMYK"), format="TIFF", compression="jpeg"
    ),
}


@pytest.mark.parametrize("kind", [*JPEGS, *IN_TIFF])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.7])
def test_a_jpeg_that_breaks_off_within_is_noticed(kind: str, part: float) -> None:
    """A marker in the middle of its pixels: decoders fill up with grey and go on."""
    whole = bytearray(JPEGS[kind] if kind in JPEGS else IN_TIFF[kind])
    assert read_image(bytes(whole), 3).shape[2] == 3
    start = whole.index(b"\xff\xda")
    at = start + int(part * (whole.index(b"\xff\xd9", start) - start))
    whole[at : at + 2] = b"\xff\xd5"
    with pytest.raises(ImageError, match="damaged or incomplete"):
        read_image(bytes(whole), 3)


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


@pytest.mark.parametrize("after", [b"", b"\n", b"\0\0\0", b"IDAT and more"])
def test_black_png_rows_are_not_missing(after: bytes) -> None:
    """Whatever follows the end of the file."""
    assert not read_image(png(6, 5, 8, 0, bytes(7 * 5)) + after, 1).any()


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


def test_a_file_that_would_fill_the_memory_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(40 << 30)
    with pytest.raises(ImageError, match="larger than any image") as caught:
        read_image(path, 3)
    assert (caught.value.seen, caught.value.expected) == (
        f"{40 << 30} bytes",
        f"at most {MAX_BYTES}",
    )

    def no_memory(path: Path, size: int) -> bytes:
        raise MemoryError

    path.write_bytes(WHOLE["jpeg 4:2:0"])
    monkeypatch.setattr(headers, "read_whole", no_memory)
    with pytest.raises(ImageError, match="no memory to read"):
        read_image(path, 3)


def test_pixels_without_memory_for_them_are_not_called_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("simplejpeg.decode_jpeg", no_memory)
    with pytest.raises(ImageError, match="no memory to decode"):
        read_image(WHOLE["jpeg 4:2:0"], 3)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_several_pages_is_refused_but_not_one_with_a_smaller_copy(big: bool) -> None:
    def pages(kind: int) -> bytes:
        first, second = (Image.fromarray(np.full((4, 5), v, np.uint8)) for v in (10, 200))
        second.encoderinfo = {"tiffinfo": {254: kind}}
        options = {"save_all": True, "append_images": [second], "big_tiff": big}
        return saved(first, format="TIFF", **options)

    with pytest.raises(ImageError, match="several pages") as caught:
        read_image(pages(0), 1)
    assert caught.value.seen == "2 pages"
    for copy in (1, 4):
        assert (read_image(pages(copy), 1) == 10).all()


def test_a_disk_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk"
    path.touch()
    disk = os.stat_result((stat.S_IFBLK | 0o600, *[0] * 9))
    monkeypatch.setattr(Path, "stat", lambda path: disk)
    with pytest.raises(ImageError, match="a pipe or a device"):
        read_image(path, 3)
