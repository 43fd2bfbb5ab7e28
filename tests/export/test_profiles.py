"""Profiles from flags and from a folder's own sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.engine.cuda import BatchShape
from unetrt.engine.tensorrt_backend import Profile, covering_profile
from unetrt.export import profiles
from unetrt.export.profiles import SizeRange, profile_shapes, range_of_sizes, ranges_from_images

SIZES = st.tuples(st.integers(1, 4000), st.integers(1, 4000))


def write(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    folder.mkdir(exist_ok=True)
    for index, size in enumerate(sizes):
        Image.fromarray(np.zeros(size, np.uint8)).save(folder / f"{index:03}.png")
    return folder


def test_few_sizes_get_a_profile_each_the_most_frequent_first(tmp_path: Path) -> None:
    found = ranges_from_images(write(tmp_path / "i", [(20, 30), (40, 30), (40, 30)]))
    assert found == (
        SizeRange((40, 30), (40, 30), (40, 30)),
        SizeRange((20, 30), (20, 30), (20, 30)),
    )


def test_many_sizes_share_profiles_that_hold_them_all(tmp_path: Path) -> None:
    sizes = [(10 + i, 60 - i) for i in range(12)] + [(15, 55)] * 3
    found = ranges_from_images(write(tmp_path / "i", sizes))
    assert 1 < len(found) <= profiles.MAX_PROFILES
    assert any(r.best == (15, 55) for r in found)
    for size in sizes:
        assert any(
            all(a <= s <= b for a, s, b in zip(r.least, size, r.most, strict=True)) for r in found
        )


def test_sizes_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert ranges_from_images(tmp_path) == (SizeRange((30, 20), (30, 20), (30, 20)),)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "i", [(20, 30)])
    (folder / "text.png").write_text("text")
    assert len(ranges_from_images(folder)) == 1
    (folder / "000.png").unlink()
    with pytest.raises(UserError, match="can be read") as caught:
        ranges_from_images(folder)
    assert "text.png" in str(caught.value.seen)


def test_a_range_that_falls() -> None:
    with pytest.raises(UserError, match="from the least to the most"):
        SizeRange((20, 30), (10, 40), (10, 40))


@settings(deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=6), st.sampled_from([0.25, 0.5, 1.0, 2.0]))
def test_every_size_is_within_its_profile(sizes: list[tuple[int, int]], scale: float) -> None:
    spec = ModelSpec(channels=3, scale=scale)
    shapes = profile_shapes(spec, (1, 4, 8), range_of_sizes(sizes))
    profile: Profile = {name: (shapes[name][0], shapes[name][2]) for name in shapes}
    for size in sizes:
        for batch in (1, 8):
            shape = BatchShape(batch, spec.input_size(size), 3, size)
            assert covering_profile([profile], shape) == 0
    too_many = BatchShape(9, spec.input_size(sizes[0]), 3, sizes[0])
    with pytest.raises(UserError, match="not built for this shape"):
        covering_profile([profile], too_many)


def test_the_first_profile_that_covers_a_shape() -> None:
    ranges = [range_of_sizes([(64, 64)]), range_of_sizes([(32, 32), (128, 128)])]
    spec = ModelSpec(channels=1, scale=1.0)
    listed: list[Profile] = []
    for sizes in ranges:
        shapes = profile_shapes(spec, (1, 2, 4), sizes)
        listed.append({name: (shapes[name][0], shapes[name][2]) for name in shapes})
    for side, index in ((64, 0), (65, 1), (32, 1)):
        assert covering_profile(listed, BatchShape(1, (side, side), 1, (side, side))) == index
    with pytest.raises(UserError) as caught:
        covering_profile(listed, BatchShape(1, (200, 64), 1, (200, 64)))
    assert str(caught.value.expected).count("image") == 2
    assert "--size" in str(caught.value.hint)
