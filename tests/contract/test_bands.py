"""Images of any number of channels: the same pixels, whatever holds them, and nothing guessed."""

from __future__ import annotations

import ast
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.contract.encodings import saved
from unetrt.contract.errors import ImageError, UserError
from unetrt.contract.images import image_size, read_image, read_shown, turn_upright
from unetrt.contract.masks import read_mask
from unetrt.contract.resize import resize_image
from unetrt.contract.types import U8

tifffile = pytest.importorskip("tifffile", reason="no tifffile: pip install 'unetrt[bands]'")

BANDS = 5


def bands(height: int = 24, width: int = 31, channels: int = BANDS) -> U8:
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), np.uint8)


def npy(array: npt.NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array: npt.NDArray[np.generic], **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"photometric": "minisblack", **options})
    return file.getvalue()


def planes(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return np.ascontiguousarray(np.moveaxis(array, 2, 0))


FORMS = {
    "npy": npy(bands()),
    "npy Fortran": npy(np.asfortranarray(bands())),
    "npy 16": npy(bands().astype(np.uint16) * 257),
    "npy 16 big-endian": npy((bands().astype(np.uint16) * 257).astype(">u2")),
    "tiff": tiff(bands(), planarconfig="contig"),
    "tiff lzw": tiff(bands(), planarconfig="contig", compression="lzw", predictor=True),
    "tiff deflate tiles": tiff(bands(), planarconfig="contig", compression="zlib", tile=(16, 16)),
    "tiff rgb + 2": tiff(bands(), planarconfig="contig", photometric="rgb"),
    "tiff planes": tiff(planes(bands()), planarconfig="separate"),
    "tiff planes zstd": tiff(planes(bands()), planarconfig="separate", compression="zstd"),
    "tiff pages": tiff(planes(bands())),
    "bigtiff": tiff(bands(), planarconfig="contig", bigtiff=True),
    "tiff big-endian": tiff(bands(), planarconfig="contig", byteorder=">"),
    "tiff rows": tiff(bands(), planarconfig="contig", rowsperstrip=8, compression="zlib"),
    "tiff 16": tiff(bands().astype(np.uint16) * 257, planarconfig="contig"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels(form: str, tmp_path: Path) -> None:
    image = read_image(FORMS[form], BANDS)
    np.testing.assert_array_equal(image, bands())
    assert image.flags.c_contiguous
    path = tmp_path / "image"
    path.write_bytes(FORMS[form])
    assert image_size(path) == bands().shape[:2]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
@settings(deadline=None)
def test_an_array_of_any_shape_is_read_as_it_is(height: int, width: int, channels: int) -> None:
    pixels = bands(height, width, channels)
    np.testing.assert_array_equal(read_image(npy(pixels), channels), pixels)


def test_arrays_are_grey_or_rgb_too() -> None:
    grey, colour = bands(channels=1), bands(channels=3)
    np.testing.assert_array_equal(read_image(npy(grey[:, :, 0]), 1), grey)
    np.testing.assert_array_equal(read_image(npy(grey), 3), np.repeat(grey, 3, axis=2))
    picture = saved(Image.fromarray(colour), format="PNG")
    np.testing.assert_array_equal(read_image(npy(colour), 1), read_image(picture, 1))


def test_alpha_is_a_channel_where_the_network_has_one_for_it() -> None:
    for channels, mode in ((2, "LA"), (4, "RGBA")):
        pixels = bands(channels=channels)
        data = saved(Image.fromarray(pixels, mode), format="PNG")
        np.testing.assert_array_equal(read_image(data, channels), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    tag = [(274, "H", 1, orientation, True)]
    data = tiff(bands(), planarconfig="contig", extratags=tag)
    upright = turn_upright(bands(), orientation)
    np.testing.assert_array_equal(read_image(data, BANDS), upright)
    path = tmp_path / "turned.tif"
    path.write_bytes(data)
    assert image_size(path) == upright.shape[:2]


def test_the_depth_of_deep_bands_is_asked_for() -> None:
    deep = bands().astype(np.uint16) * 16 + 5
    for data in (npy(deep), tiff(deep, planarconfig="contig")):
        with pytest.raises(ImageError, match="its high bytes are black") as caught:
            read_image(data, BANDS)
        assert "--bit-depth 12" in str(caught.value)
        np.testing.assert_array_equal(read_image(data, BANDS, bit_depth=12), bands())
        with pytest.raises(ImageError, match="values above 9 bits"):
            read_image(data, BANDS, bit_depth=9)


REFUSED = {
    "bands of another number": (FORMS["tiff"], 4, "another number of channels"),
    "pages of another number": (FORMS["tiff pages"], 4, "another number of channels"),
    "array of another number": (FORMS["npy"], 3, "another number of channels"),
    "planes first": (npy(planes(bands())), BANDS, "another number of channels"),
    "a jpeg": (saved(Image.new("RGB", (20, 20)), format="JPEG"), 4, "another number of channels"),
    "inks": (tiff(bands(channels=4), photometric="separated"), 4, "this form of TIFF"),
    "floats": (npy(bands().astype(np.float32)), BANDS, "range of its values"),
    "tiff floats": (
        tiff(bands().astype(np.float32), planarconfig="contig"),
        BANDS,
        "range of its values",
    ),
    "signed": (npy(bands().astype(np.int16)), BANDS, "range of its values"),
    "one axis": (npy(bands().ravel()), BANDS, "is no image"),
    "nothing": (npy(bands(0)), BANDS, "an image without pixels|is no image"),
    "cmyk jpeg": (saved(Image.new("CMYK", (20, 20)), format="JPEG"), 4, "inks"),
    "palette": (saved(Image.new("P", (20, 20)), format="PNG"), 2, "a palette"),
    "objects": (npy(np.array([[{}]])), BANDS, "range of its values"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_sure_is_refused(case: str) -> None:
    data, channels, message = REFUSED[case]
    with pytest.raises(ImageError, match=message):
        read_image(data, channels)


def _link(data: bytes, page: int) -> int:
    """Where the offset of the page after `page` is stored."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        return int(file.pages[page].offset) + 2 + 12 * len(file.pages[page].tags)


@pytest.mark.parametrize("to", [0, 2])
def test_pages_in_a_loop_end(to: int) -> None:
    data = bytearray(FORMS["tiff pages"])
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        target = file.pages[to].offset
    where = _link(FORMS["tiff pages"], 2)
    data[where : where + 4] = int(target).to_bytes(4, "little")
    with pytest.raises(ImageError, match="damaged"):
        read_image(bytes(data), BANDS)


def test_pages_behind_a_broken_link_are_missed() -> None:
    data = bytearray(FORMS["tiff pages"])
    where = _link(FORMS["tiff pages"], 3)
    data[where : where + 4] = (10**7).to_bytes(4, "little")
    with pytest.raises(ImageError, match="incomplete"):
        read_image(bytes(data), BANDS - 1)


@pytest.mark.parametrize("form", ["tiff rows", "tiff deflate tiles", "tiff planes"])
@pytest.mark.parametrize("tags", [(273, 324), (279, 325)])
def test_a_part_that_was_never_written_is_not_black(form: str, tags: tuple[int, int]) -> None:
    """tifffile fills it: an interrupted writer leaves such files."""
    data = bytearray(FORMS[form])
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tag = next(file.pages[0].tags[code] for code in tags if code in file.pages[0].tags)
        where, size = tag.valueoffset, {3: 2, 4: 4, 16: 8}[int(tag.dtype)]
    data[where + size : where + 2 * size] = bytes(size)
    with pytest.raises(ImageError, match="lacks a part"):
        read_image(bytes(data), BANDS)


@pytest.mark.parametrize("short", [2, 9, 300])
def test_a_jpeg_in_a_tiff_that_ends_early_is_noticed(short: int) -> None:
    whole = tiff(planes(bands(64, 64)), planarconfig="separate", compression="jpeg")
    assert read_image(whole, BANDS).shape == (64, 64, BANDS)
    with tifffile.TiffFile(io.BytesIO(whole)) as file:
        at, count = file.pages[0].dataoffsets[4], file.pages[0].databytecounts[4]
    data = bytearray(whole)
    data[at + count - short : at + count] = bytes(short)
    with pytest.raises(ImageError):
        read_image(bytes(data), BANDS)


def test_the_range_of_deep_bands_is_that_of_all_of_them() -> None:
    deep = bands().astype(np.uint16) * 257
    deep[..., 2] //= 100
    expected = (deep >> 8).astype(np.uint8)
    for data in (npy(deep), tiff(planes(deep)), tiff(deep, planarconfig="contig")):
        np.testing.assert_array_equal(read_image(data, BANDS), expected)


def test_axes_below_nothing_are_refused() -> None:
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (-24, -31, BANDS)}
    np.lib.format.write_array_header_1_0(header, shape)
    with pytest.raises(ImageError):
        read_image(header.getvalue() + bytes(5000), BANDS)


def test_a_header_that_claims_more_than_there_is_takes_no_memory() -> None:
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, BANDS)}
    np.lib.format.write_array_header_1_0(header, shape)
    with pytest.raises(ImageError, match="more than"):
        read_image(header.getvalue() + bytes(100), BANDS)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", FORMS)
def test_a_cut_file_is_an_error_or_lacks_nothing(form: str) -> None:
    whole = FORMS[form]
    for cut in range(1, len(whole), 97):
        with suppress(ImageError):
            np.testing.assert_array_equal(read_image(whole[:cut], BANDS), bands())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", FORMS)
def test_damage_raises_nothing_but_image_errors(form: str) -> None:
    rng = np.random.default_rng(len(form))
    for _ in range(60):
        data = np.frombuffer(FORMS[form], np.uint8).copy()
        data[rng.integers(0, min(400, len(data)), 3)] = rng.integers(0, 256, 3)
        with suppress(ImageError):
            assert read_image(data.tobytes(), BANDS).shape[2] == BANDS


def test_bands_are_shown_by_the_first_three() -> None:
    np.testing.assert_array_equal(read_shown(FORMS["tiff"], BANDS), bands()[:, :, :3])
    two = npy(bands(channels=2))
    np.testing.assert_array_equal(read_shown(two, 2), np.repeat(bands(channels=2)[..., :1], 3, 2))


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_resized_as_the_reference_does(channels: int) -> None:
    pixels = bands(channels=channels)
    expected = Image.fromarray(pixels).resize((15, 12), Image.Resampling.BICUBIC)
    resized = resize_image(pixels, (12, 15), "pil-bicubic")
    np.testing.assert_array_equal(resized, np.asarray(expected))


@pytest.mark.parametrize("kernel", ["area", "pil-bicubic"])
@pytest.mark.parametrize("size", [(12, 15), (11, 23), (40, 50)])
def test_each_band_is_resized_as_a_grey_image(kernel: str, size: tuple[int, int]) -> None:
    resized = resize_image(bands(), size, kernel)  # type: ignore[arg-type]
    for band in range(BANDS):
        alone = resize_image(bands()[:, :, band : band + 1], size, kernel)  # type: ignore[arg-type]
        np.testing.assert_array_equal(resized[:, :, band], alone[:, :, 0])


def test_without_tifffile_the_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(UserError, match="tifffile") as caught:
        read_image(FORMS["tiff"], BANDS)
    assert "unetrt[bands]" in str(caught.value)
    assert not isinstance(caught.value, ImageError)


@pytest.mark.parametrize("read", [lambda path: read_image(path, 1), read_mask])
def test_headers_of_arrays_are_read_one_at_a_time(
    read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 ends two ast.literal_eval in two threads in a SystemError, now and then."""
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3), np.uint8))
    real, running, most = ast.literal_eval, [0], [0]

    def slow(text: str) -> object:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.01)
        running[0] -= 1
        return real(text)

    monkeypatch.setattr(ast, "literal_eval", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, [path] * 8))
    assert most == [1]
