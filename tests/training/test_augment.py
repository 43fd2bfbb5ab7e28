from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetrt.contract.types import NO_CLASS, U8
from unetrt.training.augment import (
    draw_scale,
    random_brightness_contrast,
    random_flip_turn,
    random_resized_crop,
)


def coded(seed: int, height: int, width: int) -> tuple[U8, U8]:
    """Areas of four classes; each pixel of the image tells its class: 20, 70, 120 or 170."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (height // 8 + 1, width // 8 + 1), np.uint8)
    truth = np.kron(coarse, np.ones((8, 8), np.uint8))[:height, :width]
    return (20 + 50 * truth)[:, :, None], truth


def inside(truth: U8) -> np.typing.NDArray[np.bool_]:
    """Pixels with a class whose neighbours, two away, are of that class too."""
    kernel = np.ones((5, 5), np.uint8)
    alike = cv2.erode(truth, kernel) == cv2.dilate(truth, kernel)
    return np.asarray(alike & (truth != NO_CLASS))


@settings(deadline=None)
@given(
    st.integers(0, 1000),
    st.tuples(st.integers(16, 60), st.integers(16, 60)),
    st.one_of(st.none(), st.integers(16, 70)),
)
def test_masks_move_with_their_images(seed: int, shape: tuple[int, int], crop: int | None) -> None:
    image, truth = coded(seed, *shape)
    rng = np.random.default_rng(seed)
    size = (crop, crop) if crop else shape
    scale = draw_scale(rng)
    window = round(size[0] / scale), round(size[1] / scale)
    image, truth = random_resized_crop(image, truth, window, (size, size), rng)
    assert image.shape == (*size, 1)
    assert truth.shape == size
    image, truth = random_flip_turn(image, truth, rng)
    sure = inside(truth)
    assert np.array_equal(image[:, :, 0][sure], (20 + 50 * truth)[sure])
    assert set(np.unique(truth)) <= {0, 1, 2, 3, NO_CLASS}


@pytest.mark.parametrize("finer", [1, 2, 2.5, 0.5])
@pytest.mark.parametrize("window", [80, 72, 100])
def test_edges_of_masks_stay_on_those_of_images(window: int, finer: float) -> None:
    """Enlarged and shrunk, the class changes where the image passes the middle of the step.

    The truth has `finer` pixels for each of the image's; a window above 80 is filled.
    """
    fine = int(80 * finer)
    truth = np.repeat(np.array([0, 1], np.uint8), fine // 2)[None].repeat(fine, 0)
    image = np.repeat(np.array([0, 100], np.uint8), 40)[None].repeat(80, 0)[:, :, None]
    for side, seed in itertools.product((50, 80, 110), range(5)):
        large = int(side * finer)
        sizes, rng = ((side, side), (large, large)), np.random.default_rng(seed)
        small, mask = random_resized_crop(image, truth, (window, window), sizes, rng)
        assert (small.shape[:2], mask.shape) == sizes
        row = mask[np.flatnonzero((mask != NO_CLASS).any(1))[0]]
        counted = np.flatnonzero(row != NO_CLASS)
        step = counted[0] + np.flatnonzero(np.diff(row[counted]))
        bright = np.flatnonzero(np.diff((small[side // 2, :, 0] > 50).astype(int)))
        assert len(step) == len(bright) == 1
        assert abs(int(step[0]) + 1 - (int(bright[0]) + 1) * finer) <= max(1, finer) + 0.5


def test_a_window_that_is_too_large_lies_anywhere_about_its_image() -> None:
    image, truth = coded(1, 20, 24)
    tops, lefts = set(), set()
    for seed in range(60):
        size = (26, 30)
        cut, mask = random_resized_crop(
            image, truth, size, (size, size), np.random.default_rng(seed)
        )
        counted = mask != NO_CLASS
        assert counted.sum() == 20 * 24
        top, left = (int(np.flatnonzero(counted.any(axis))[0]) for axis in (1, 0))
        assert np.array_equal(mask[top : top + 20, left : left + 24], truth)
        assert np.array_equal(cut[top : top + 20, left : left + 24], image)
        assert (cut[:top, left : left + 24] == image[:1]).all(), "the edge goes on"
        tops.add(top)
        lefts.add(left)
    assert tops == lefts == set(range(7))


@pytest.mark.parametrize("shape", [(32, 32), (16, 24)])
def test_all_positions_come(shape: tuple[int, int]) -> None:
    _, truth = coded(5, *shape)
    turns = [np.rot90(t, k) for t in (truth, truth.T) for k in range(4)]
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        image, moved = random_flip_turn(truth[:, :, None], truth, rng)
        assert np.array_equal(image[:, :, 0], moved)
        seen.add(next(i for i, t in enumerate(turns) if np.array_equal(t, moved)))
    assert len(seen) == (8 if shape[0] == shape[1] else 4)


def test_light_changes_within_bounds_and_keeps_the_order_of_values() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    middles = []
    for seed in range(200):
        changed = random_brightness_contrast(image, np.random.default_rng(seed))
        assert changed.dtype == np.uint8
        assert changed.shape == image.shape
        assert (np.diff(changed[:, :, 0].ravel().astype(int)) >= 0).all()
        middles.append(int(changed[8, 0, 0]))
    assert 90 <= min(middles) < 110
    assert 146 < max(middles) <= 165


def test_half_of_the_images_keep_their_scale_and_the_others_go_both_ways() -> None:
    rng = np.random.default_rng(0)
    scales = [draw_scale(rng) for _ in range(1000)]
    assert 400 < scales.count(1.0) < 600
    assert 0.8 <= min(scales) < 0.82
    assert 1.22 < max(scales) <= 1.25
