"""Tiles: they cover an image, see all that the network sees of it, and make up its mask."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.conftest import balanced_checkpoint, steel
from tests.engine.test_slots import engine_of_kind
from unetrt.contract.tiles import (
    GRAIN,
    MARGIN,
    Axis,
    Mosaic,
    cut,
    cut_axis,
    middle,
    shrunk,
)
from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine
from unetrt.engine.torch_backend import TorchEngine
from unetrt.training.unet import UNet

SIDES = st.integers(300, 6000)


def below(side: int, share: int) -> int:
    """The longest side of a tile: from 520 to all but one pixel of `side`, by thousandths."""
    return 520 + (side - 521) * share // 1000


@given(SIDES, st.sampled_from([1, 2, 3, 4, 5 / 2, 4 / 3]), st.integers(0, 1), SIDES, st.booleans())
def test_tiles_cover_a_side(side: int, ratio: float, odd: int, most: int, fixed: bool) -> None:
    mask = int(side * ratio) + odd
    axis = cut_axis(side, mask, most, fixed)
    assume(axis is not None)
    assert axis is not None
    spans = axis.spans
    assert (spans[0].start, spans[0].first) == (0, 0)
    assert (spans[-1].start + axis.length, spans[-1].last) == (side, mask)
    assert axis.length <= most
    for span in spans:
        assert span.length == axis.length
        assert span.start % GRAIN == 0
        assert span.place <= span.first < span.last <= span.place + axis.mask
    for span, after in itertools.pairwise(spans):
        assert span.start < after.start
        assert span.last == after.first


@given(st.integers(100, 1000), st.sampled_from([1, 2, 3, 4, 5 / 2, 4 / 3]), st.integers(0, 1000))
def test_what_is_kept_lies_where_it_does_in_the_whole(sixth: int, ratio: float, share: int) -> None:
    """Where a side's mask is a simple fraction of it; and a margin from where it was cut."""
    side, mask = 6 * sixth, round(6 * sixth * ratio)
    axis = cut_axis(side, mask, below(side, share))
    assert axis is not None
    assert axis.exact
    assert len(axis.spans) > 1
    assert axis.mask * side == axis.length * mask
    for span in axis.spans:
        assert span.place * side == span.start * mask
        end = span.start + span.length
        assert span.start == 0 or span.first * side >= (span.start + MARGIN) * mask
        assert end == side or span.last * side <= (end - MARGIN) * mask


@given(
    st.integers(600, 6000),
    st.sampled_from([1, 2, 3, 4, 5 / 2, 4 / 3]),
    st.integers(0, 3),
    st.integers(0, 1000),
)
@example(5602, 4 / 3, 1, 160)
def test_what_is_kept_lies_within_a_pixel(side: int, ratio: float, odd: int, share: int) -> None:
    """Whatever the sides: by the resize of the tile and that of the whole."""
    mask = int(side * ratio) + odd
    axis = cut_axis(side, mask, below(side, share))
    assert axis is not None
    assert len(axis.spans) > 1
    for span in axis.spans:
        for pixel in (span.first, span.last - 1):
            whole = (pixel + 0.5) * side / mask
            here = span.start + (pixel - span.place + 0.5) * axis.length / axis.mask
            off = abs(here - whole) * mask / side
            assert off < (1e-6 if axis.exact else 1)


@pytest.mark.parametrize(
    ("side", "mask", "exact"),
    [(1000, 1000, True), (1000, 2000, True), (1000, 2001, False), (900, 3000, True)],
)
def test_half_of_an_odd_number_is_not_exact(side: int, mask: int, exact: bool) -> None:
    axis = cut_axis(side, mask, 512)
    assert axis is not None
    assert axis.exact is exact
    assert all(abs(s.place * side - s.start * mask) <= side / 2 for s in axis.spans)


def test_where_exact_tiles_are_too_long_others_serve() -> None:
    """At a scale of 0.65 they start at every 208th pixel."""
    tiles = [cut_axis(1690, 2600, most) for most in (1000, 512)]
    assert [(axis_of(axis), axis is not None and axis.exact) for axis in tiles] == [
        ((3, 858), True),
        ((6, 506), False),
    ]


def test_a_side_is_not_cut_into_margins() -> None:
    assert cut_axis(1000, 1000, 300) is None
    whole = cut_axis(300, 300, 300)
    assert whole is not None
    assert len(whole.spans) == 1


def test_tiles_are_as_short_as_their_number_allows() -> None:
    """Two halves and their margins; a fixed size is that of a plan."""
    short, fixed = cut_axis(2048, 2048, 1600), cut_axis(2048, 2048, 1600, fixed=True)
    assert (axis_of(short), axis_of(fixed)) == ((2, 1152), (2, 1600))


def axis_of(axis: Axis | None) -> tuple[int, int]:
    assert axis is not None
    return len(axis.spans), axis.length


@pytest.mark.parametrize(
    ("most", "pixels", "expected"),
    [
        ((900, 1200), 2_000_000, (900, 1200)),
        ((900, 1200), 250_000, (500, 500)),
        ((1200, 200), 100_000, (500, 200)),
        ((200, 1200), 100_000, (200, 500)),
    ],
)
def test_squares_or_strips(most: Size, pixels: int, expected: Size) -> None:
    assert shrunk(most, pixels) == expected


def test_the_margin_is_what_the_network_reaches() -> None:
    """Every weight positive, so that no path is lost: 107 pixels, one of them by alignment."""
    net = UNet(1, 1, 1).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0.1)
        image = torch.ones(1, 1, 512, 48, dtype=torch.float64)
        before = net(image)
        reached = []
        for row in range(256, 256 + GRAIN):
            image[0, 0, row] += 1e6
            changed = (net(image) != before).any(3).flatten().nonzero()
            image[0, 0, row] -= 1e6
            reached += [row - int(changed.min()), int(changed.max()) - row]
    assert max(reached) == 107
    padded = GRAIN - 1
    assert max(reached) + 1 + padded <= MARGIN


def masks_of(engine: Engine, image: U8, size: Size, most: Size) -> tuple[U8, U8]:
    """That of the whole image, and that of its tiles."""
    grid = cut((image.shape[0], image.shape[1]), size, most)
    assert grid is not None
    assert grid.count > 1
    mosaic = Mosaic("image", image, np.empty(size, np.uint8), grid)
    done = [
        mosaic.put(tile, engine.run(np.ascontiguousarray(tile.image), grid.mask_size))
        for tile in mosaic.tiles()
    ]
    assert done == [False] * (grid.count - 1) + [True]
    return engine.run(image, size), mosaic.mask


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino-fp32", "openvino-bf16"])
def test_the_mask_is_that_of_the_whole(
    kind: str, checkpoint_file: Callable[..., Path], exported: Callable[..., Path]
) -> None:
    image = steel(3, 540, 556)
    with engine_of_kind(kind, checkpoint_file(), exported()) as engine:
        for size in ((540, 556), (1080, 1112)):
            whole, tiled = masks_of(engine, image, size, (448, 448))
            assert len(np.unique(whole)) >= 3
            # Sums of other shapes may be added up in another order.
            assert np.mean(whole != tiled) <= 1e-5
            assert whole.shape == tiled.shape


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_of_any_number_of_classes(classes: int) -> None:
    image = steel(5, 540, 64)
    with TorchEngine(balanced_checkpoint(classes=classes), "cpu") as engine:
        whole, tiled = masks_of(engine, image, (1080, 128), (448, 448))
        np.testing.assert_array_equal(tiled, whole)
        assert len(np.unique(whole)) > 1


def test_of_sides_that_are_no_simple_fraction() -> None:
    """Off by a pixel at most: what differs lies between classes, or is as small as that."""
    image = steel(5, 539, 64)
    with TorchEngine(balanced_checkpoint(), "cpu") as engine:
        whole, tiled = masks_of(engine, image, (1079, 129), (448, 448))
    assert (whole != tiled).any()
    flat = cv2.dilate(whole, np.ones((3, 3))) == cv2.erode(whole, np.ones((3, 3)))
    assert np.mean((whole != tiled)[flat]) < 0.002
    assert np.mean((whole != tiled)[~flat]) > 0.02


def test_a_smaller_margin_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """That these tests can fail."""
    monkeypatch.setattr("unetrt.contract.tiles.MARGIN", 16)
    image = steel(3, 540, 64)
    with TorchEngine(balanced_checkpoint(), "cpu") as engine:
        whole, tiled = masks_of(engine, image, (540, 64), (448, 448))
    assert np.mean(whole != tiled) > 1e-5


@pytest.mark.parametrize(
    ("input_size", "size", "expected"),
    [
        ((40, 60), (80, 120), (40, 60)),
        ((40, 300), (81, 601), (40, 100)),
        ((300, 300), (300, 300), (100, 100)),
        ((300, 300), (20, 30), (100, 100)),
    ],
)
def test_the_middle_keeps_its_part_of_the_mask(
    input_size: Size, size: Size, expected: Size
) -> None:
    image = np.arange(input_size[0] * input_size[1]).astype(np.uint8).reshape(*input_size, 1)
    part, part_size = middle(image, size, 100)
    assert part.shape == (*expected, 1)
    top, left = ((whole - side) // 2 for whole, side in zip(input_size, expected, strict=True))
    np.testing.assert_array_equal(part, image[top : top + expected[0], left : left + expected[1]])
    for side, whole, mask, of_mask in zip(expected, input_size, size, part_size, strict=True):
        assert abs(of_mask - mask * side / whole) <= 0.5
    assert not np.shares_memory(part, image)
