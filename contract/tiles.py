"""Images too large for one run, in overlapping tiles whose masks make up that of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .types import U8, Size

T = TypeVar("T")

MARGIN = 128
"""Pixels beside a logit that it may depend on: 107 of them, and what a cut adds at a tile's edge.

3×3 convolutions reach 2·(1 + 2 + 4 + 8 + 16) pixels on the way down and 2·(8 + 4 + 2 + 1) on the
way up, poolings 1 + 2 + 4 + 8; then one for the resize. A tile that ends between two pixels of the
lowest level is padded there, up to 15 pixels before its edge.
"""

GRAIN = 16
"""Tiles start at whole pixels of the lowest level, so that all poolings fall as in the whole."""

LEAST_SIDE = 400
"""The shortest side that an image is cut to: an eighth of such a tile is kept, no more."""

MOST_PARTS = 16
"""Of the ratio of a mask's side to its input's, in lowest terms; see Span."""


@dataclass(frozen=True)
class Span:
    """A tile along one axis.

    start, length: of the network's input. place: where its mask starts in the whole one.
    first, last: what of the whole mask is taken from it.
    """

    start: int
    length: int
    place: int
    first: int
    last: int


@dataclass(frozen=True)
class Axis:
    """All tiles along one axis, of one length each; masks of `mask` pixels.

    exact: whether each pixel of a mask lies on the network's where it does in the whole. It does
    if both sides have small numbers as their ratio (1/2, 2/5): each tile can start at a pixel of
    both. Else (half of an odd number) it lies off by less than one of the mask's.
    """

    spans: tuple[Span, ...]
    mask: int
    exact: bool

    @property
    def length(self) -> int:
        return self.spans[0].length


def whole_axis(side: int, mask: int) -> Axis:
    return Axis((Span(0, side, 0, 0, mask),), mask, True)


def cut_axis(side: int, mask: int, most: int, fixed: bool = False) -> Axis | None:
    """Tiles of at most `most` pixels of a network's side, whose mask has `mask`.

    As short as their number allows, or, where `fixed`, as long as may be; exact where they can be.
    None: they cannot be so short.
    """
    if side <= most:
        return whole_axis(side, mask)
    parts = side // math.gcd(side, mask)
    found = _cut_axis(side, mask, most, fixed, parts) if parts <= MOST_PARTS else None
    return found or _cut_axis(side, mask, most, fixed, 1)


def _cut_axis(side: int, mask: int, most: int, fixed: bool, parts: int) -> Axis | None:
    """Tiles that start, and are kept from, at multiples of `parts`."""
    step, before = math.lcm(GRAIN, parts), _up(MARGIN, parts)
    length = most - (most - side) % step
    stride = (length - before - MARGIN) // step * step
    if length < LEAST_SIDE or stride <= 0:
        return None
    gaps = math.ceil((side - length) / stride)
    while not fixed and length - step >= LEAST_SIDE:
        if _up(math.ceil((side - length + step) / gaps), step) > length - step - before - MARGIN:
            break
        length -= step
    starts = [_up((side - length) * gap // gaps, step) for gap in range(gaps + 1)]

    def at(pixel: int) -> int:
        return round(pixel * mask / side)

    tile_mask = at(length)
    bounds = [0, *(at(start + before) for start in starts[1:]), mask]
    places = [*(at(start) for start in starts[:-1]), mask - tile_mask]
    spans = zip(starts, places, bounds[:-1], bounds[1:], strict=True)
    return Axis(
        tuple(Span(start, length, place, first, last) for start, place, first, last in spans),
        tile_mask,
        parts * mask % side == 0,
    )


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


@dataclass(frozen=True)
class Grid:
    """How an image is cut: rows × columns of tiles of one size."""

    rows: Axis
    columns: Axis

    @property
    def input_size(self) -> Size:
        """(h, w) of each tile."""
        return self.rows.length, self.columns.length

    @property
    def mask_size(self) -> Size:
        return self.rows.mask, self.columns.mask

    @property
    def count(self) -> int:
        return len(self.rows.spans) * len(self.columns.spans)

    @property
    def pixels(self) -> int:
        """That the network computes."""
        return self.count * self.tile_pixels

    @property
    def tile_pixels(self) -> int:
        """Of the network's input, in each tile."""
        return self.rows.length * self.columns.length

    @property
    def exact(self) -> bool:
        return self.rows.exact and self.columns.exact


def cut(input_size: Size, size: Size, most: Size, fixed: bool = False) -> Grid | None:
    """Tiles of at most `most` (h, w) of a network input whose mask has `size`; see cut_axis."""
    rows = cut_axis(input_size[0], size[0], most[0], fixed)
    columns = cut_axis(input_size[1], size[1], most[1], fixed)
    return None if rows is None or columns is None else Grid(rows, columns)


def fewer(pixels: int) -> tuple[int, int]:
    """What to try where so many found no memory: half, or, where no tile is so small, 3/4."""
    return pixels // 2, pixels * 3 // 4


def shrunk(most: Size, pixels: int) -> Size:
    """At most so many pixels, and no side longer: a square, or a strip where a side is shorter."""
    height, width = most
    if height * width <= pixels:
        return most
    short = min(height, width, math.isqrt(pixels))
    long = pixels // short
    return (short, long) if height <= width else (long, short)


def cut_to(pixels: int, input_size: Size, size: Size) -> Grid | None:
    """Tiles of at most so many pixels. None: the whole has no more, or they cannot be so small."""
    if input_size[0] * input_size[1] <= pixels:
        return None
    return cut(input_size, size, shrunk(input_size, pixels))


def middle(image: U8, size: Size, most: int) -> tuple[U8, Size]:
    """What lies in the middle of a network input (h, w, C) whose mask is to be of `size`.

    At most `most` pixels a side, and its part of `size`; a copy of its own.
    """
    sides = [min(side, most) for side in image.shape[:2]]
    top, left = ((whole - side) // 2 for whole, side in zip(image.shape, sides, strict=False))
    part = image[top : top + sides[0], left : left + sides[1]].copy()
    of_mask = (max(1, round(m * s / w)) for m, s, w in zip(size, sides, image.shape, strict=False))
    return part, (next(of_mask), next(of_mask))


class Mosaic(Generic[T]):
    """The whole mask of a task, while the masks of its tiles come in.

    void: nobody wants it any more: a tile has failed, or the image is cut anew.
    """

    def __init__(self, task: T, image: U8, mask: U8, grid: Grid) -> None:
        """mask: (H, W) or (C, H, W), to be filled."""
        self.task, self.image, self.mask, self.grid = task, image, mask, grid
        self.void = False
        self._left = grid.count

    def tiles(self) -> list[Tile[T]]:
        rows, columns = self.grid.rows.spans, self.grid.columns.spans
        return [Tile(self, row, column) for row in rows for column in columns]

    @property
    def size(self) -> Size:
        """(H, W) of the mask."""
        return self.mask.shape[-2], self.mask.shape[-1]

    def put(self, tile: Tile[T], mask: U8) -> bool:
        """Take (H, W) or (C, H, W) of a tile. Whether all are there."""
        row, column = tile.row, tile.column
        self.mask[..., row.first : row.last, column.first : column.last] = mask[
            ...,
            row.first - row.place : row.last - row.place,
            column.first - column.place : column.last - column.place,
        ]
        self._left -= 1
        return not self._left


def run_in_tiles(run: Callable[[U8, Size], U8], image: U8, mask: U8, grid: Grid) -> U8:
    """Fill `mask`, (H, W) or (C, H, W), by what `run` gives of each tile and its mask's size."""
    mosaic = Mosaic(None, image, mask, grid)
    for tile in mosaic.tiles():
        mosaic.put(tile, run(tile.image, grid.mask_size))
    return mask


@dataclass(frozen=True, eq=False)
class Tile(Generic[T]):
    """A part of an image, on its way as if it were one."""

    mosaic: Mosaic[T]
    row: Span
    column: Span

    @property
    def image(self) -> U8:
        """(h, w, C), a view."""
        row, column = self.row, self.column
        return self.mosaic.image[
            row.start : row.start + row.length, column.start : column.start + column.length
        ]
