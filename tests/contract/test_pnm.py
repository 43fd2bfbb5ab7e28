"""PGM, PPM and PBM files: images and masks take the same ones, and refuse the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.contract.encodings import pnm
from unetrt.contract.errors import ImageError
from unetrt.contract.images import read_image
from unetrt.contract.masks import read_mask


@pytest.mark.parametrize(
    "data",
    [
        b"P5 2 1 20\n\x01\x15",
        b"P6 1 1 20\n\x01\x15\x02",
        b"P2 2 1 20 1 21\n",
        b"P2 2 1 255 1 256\n",
        b"P3 1 1 1000 1 2 70000\n",
    ],
)
def test_a_pgm_above_its_maximum_is_neither_mask_nor_image(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(data)
    for read in (read_mask, lambda path: read_image(path, 3)):
        with pytest.raises(ImageError, match="above the maximum of its header"):
            read(path)


@pytest.mark.parametrize(
    ("data", "mask", "image"),
    [
        (b"P2 3 1 20 # of 20\n1 2#two\n20\n", [1, 2, 20], [13, 26, 255]),
        (b"P3 1 1 255\n1 # red\n2 3\n", [1, 2, 3], [1, 2, 3]),
        (b"P1 3 1\n0 # white\n1 0\n", [1, 0, 1], [255, 0, 255]),
    ],
)
def test_comments_among_samples_are_passed_over(
    data: bytes, mask: list[int], image: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(data)
    assert read_mask(path).ravel().tolist() == mask
    assert read_image(path, 3 if data[:2] == b"P3" else 1).ravel().tolist() == image


@pytest.mark.parametrize("maximum", [1, 3, 20, 100, 254, 255])
def test_values_are_scaled_to_255_as_pillow_does(maximum: int, tmp_path: Path) -> None:
    values = np.arange(maximum + 1, dtype=np.uint8)[None]
    path = tmp_path / "a.pgm"
    for magic in (b"P5", b"P2"):
        path.write_bytes(pnm(magic, values, maximum, plain=magic == b"P2"))
        with Image.open(path) as image:
            expected = np.asarray(image)
        np.testing.assert_array_equal(read_image(path, 1)[..., 0], expected)
        np.testing.assert_array_equal(read_mask(path), values)
