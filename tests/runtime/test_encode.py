"""Mask files as others read them: Pillow, cv2, and our own reader."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unetrt.contract.errors import UserError
from unetrt.contract.masks import class_indices, mask_pixels, read_mask
from unetrt.contract.palettes import class_colour
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import U8
from unetrt.runtime.encode import (
    MaskFormat,
    check_output_suffix,
    colour_table,
    encode_mask,
    resolve_format,
)

SPECS = {
    "one class": ModelSpec(classes=1),
    "two classes": ModelSpec(classes=2),
    "two classes, 0 and 255": ModelSpec(classes=2, mask_values=(0, 255)),
    "two classes, 255 and 0": ModelSpec(classes=2, mask_values=(255, 0)),
    "two colours": ModelSpec(classes=2, mask_values=((0, 0, 0), (9, 200, 30))),
    "four classes": ModelSpec(classes=4),
    "five classes": ModelSpec(classes=5),
    "seventeen classes": ModelSpec(classes=17),
    "values apart": ModelSpec(classes=3, mask_values=(7, 255, 3)),
    "three colours": ModelSpec(classes=3, mask_values=((0, 0, 0), (255, 0, 0), (1, 2, 3))),
    "254 classes": ModelSpec(classes=254),
}
SIZES = [(1, 1), (1, 17), (17, 1), (5, 7), (16, 24), (33, 65)]


def formats_of(spec: ModelSpec) -> list[MaskFormat]:
    """Every format that can hold the masks."""
    found: list[MaskFormat] = ["index"]
    if not spec.rgb_masks:
        found.append("palette")
    if spec.mask_classes == 2:
        found.append("bilevel")
    return found


CASES = [(name, fmt) for name, spec in SPECS.items() for fmt in formats_of(spec)]


def random_mask(spec: ModelSpec, size: tuple[int, int]) -> U8:
    rng = np.random.default_rng(size)
    return rng.integers(0, spec.mask_classes, size, np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "fmt"), CASES)
def test_pillow_and_cv2_read_the_same_values(
    name: str, fmt: MaskFormat, size: tuple[int, int]
) -> None:
    spec = SPECS[name]
    mask = random_mask(spec, size)
    data = encode_mask(mask, spec, fmt)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.mode == {"bilevel": "1", "palette": "P"}.get(
            fmt, "RGB" if spec.rgb_masks else "L"
        )
        by_pillow = np.asarray(image)
    by_cv2 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert by_cv2 is not None
    if fmt == "bilevel":
        white = mask == (0 if spec.mask_values == (255, 0) else 1)
        np.testing.assert_array_equal(by_pillow, white)
        np.testing.assert_array_equal(by_cv2, white * 255)
        return
    values = mask_pixels(mask, spec)
    np.testing.assert_array_equal(by_pillow, values)
    if fmt == "palette":  # cv2 shows the colours, blue first
        colours = np.array([class_colour(v) for v in range(256)], np.uint8)
        np.testing.assert_array_equal(by_cv2[..., 2::-1], colours[values])
    elif spec.rgb_masks:
        np.testing.assert_array_equal(by_cv2[..., ::-1], values)
    else:
        np.testing.assert_array_equal(by_cv2, values)


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".TIFF", ".PNG"])
@pytest.mark.parametrize(("name", "fmt"), CASES)
def test_every_lossless_file_type_reads_back(
    name: str, fmt: MaskFormat, suffix: str, tmp_path: Path
) -> None:
    spec = SPECS[name]
    mask = random_mask(spec, (9, 13))
    path = tmp_path / f"mask{suffix}"
    path.write_bytes(encode_mask(mask, spec, fmt, suffix))
    np.testing.assert_array_equal(class_indices(read_mask(path), spec, path), mask)


@settings(deadline=None, max_examples=80)
@given(
    case=st.sampled_from(CASES),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_what_is_written_is_what_is_read(
    case: tuple[str, MaskFormat],
    height: int,
    width: int,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    spec, fmt = SPECS[case[0]], case[1]
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, spec.mask_classes, (height, width), np.uint8)
    path = tmp_path_factory.getbasetemp() / "property.png"
    path.write_bytes(encode_mask(mask, spec, fmt))
    np.testing.assert_array_equal(class_indices(read_mask(path), spec, path), mask)


@pytest.mark.parametrize(
    ("name", "bits"), [("four classes", 2), ("five classes", 4), ("seventeen classes", 8)]
)
def test_a_palette_takes_as_few_bits_as_hold_it(name: str, bits: int) -> None:
    """They compress faster; IHDR says how many there are (PNG specification, 11.2.2)."""
    data = encode_mask(random_mask(SPECS[name], (9, 13)), SPECS[name], "palette")
    assert data[24] == bits


def test_a_mask_that_is_no_contiguous_array_is_written_as_it_is() -> None:
    spec = SPECS["four classes"]
    mask = random_mask(spec, (10, 14))[::2, ::-1]
    assert encode_mask(mask, spec, "palette") == encode_mask(mask.copy(), spec, "palette")


@pytest.mark.parametrize(
    ("name", "fmt"),
    [
        ("one class", "bilevel"),
        ("two classes", "bilevel"),
        ("two classes, 0 and 255", "index"),
        ("two colours", "index"),
        ("four classes", "palette"),
        ("three colours", "index"),
    ],
)
def test_auto_takes_what_a_viewer_shows(name: str, fmt: MaskFormat) -> None:
    assert resolve_format("auto", SPECS[name]) == fmt


@pytest.mark.parametrize(
    ("fmt", "name"),
    [("bilevel", "four classes"), ("palette", "three colours"), ("prob", "two classes")],
)
def test_a_format_that_cannot_hold_the_masks_is_refused(fmt: MaskFormat, name: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_format(fmt, SPECS[name])
    assert caught.value.expected


def test_the_colours_are_those_of_pascal_voc() -> None:
    known = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert [class_colour(value) for value in range(5)] == known
    assert class_colour(15) == (192, 128, 128)
    assert len({class_colour(value) for value in range(256)}) == 256
    assert len(colour_table(SPECS["values apart"])) == 3 * 256


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_jpeg_is_for_two_classes_and_warned_of(
    suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(f"output{suffix}")
    with caplog.at_level(logging.WARNING):
        check_output_suffix(path, SPECS["two classes"])
    assert "JPEG changes mask values" in caplog.text
    with pytest.raises(UserError) as caught:
        check_output_suffix(path, SPECS["four classes"])
    assert caught.value.hint == "-o output.png"


@pytest.mark.parametrize("name", ["mask.webp", "mask.gif", "mask", "mask.png.zip", ".png"])
def test_other_file_types_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="masks are not written as") as caught:
        check_output_suffix(Path(name), SPECS["two classes"])
    assert ".png" in str(caught.value.expected)


@pytest.mark.parametrize("name", ["one class", "two classes, 0 and 255", "two colours"])
def test_a_jpeg_shows_the_two_classes_apart_in_every_format(name: str) -> None:
    spec = SPECS[name]
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 1
    for fmt in formats_of(spec):
        data = encode_mask(mask, spec, fmt, ".jpg")
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "JPEG"
            grey = np.asarray(image.convert("L")).astype(int)
        if name != "one class" or fmt == "bilevel":
            assert grey[16, 16] - grey[2, 2] > 100
