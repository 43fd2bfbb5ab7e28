"""Which images are cut into tiles: what neither the memory nor a plan takes whole."""

from __future__ import annotations

import math
import sys

from ..contract.errors import UserError
from ..contract.log import log
from ..contract.spec import ModelSpec
from ..contract.tiles import GRAIN, LEAST_SIDE, Grid, cut, fewer, shrunk
from ..contract.types import Size
from ..engine.base import Engine
from .budget import NETWORK
from .pages import Key

LEAST_PIXELS = (LEAST_SIDE + GRAIN) ** 2
"""Tiles get no smaller by an estimate alone: the smallest are still more likely to fit."""


class Cutter:
    """side: the longest of a tile, as asked for; memory: bytes that loaded images may take.

    pixels: the most of a network input for which there is memory, as far as batches that found
    none have told. What the host has is known beforehand, by the engine's own estimate.
    """

    def __init__(self, engine: Engine, side: int | None, batch: int, memory: int) -> None:
        self._engine, self._side = engine, side or sys.maxsize
        self.pixels = sys.maxsize
        self._image_bytes = NETWORK * memory // (batch * engine.streams)
        self._told: set[str] = set()

    def grid(self, input_size: Size, size: Size) -> Grid | None:
        """How an image of a network size, whose mask is to be of `size`, is cut. None: not."""
        height, width = input_size
        refused = self._engine.refusal(input_size, size) is not None
        needed = refused or not self.takes(input_size, size)
        if not (needed or max(input_size) > self._side) or self._engine.spec.bilinear:
            return None
        grids, pixels = [], self._most_pixels(input_size, size)
        for most in self._engine.largest or [input_size]:
            for fixed in (False, True):
                bounds = (min(most[0], height, self._side), min(most[1], width, self._side))
                found = cut(input_size, size, shrunk(bounds, pixels), fixed)
                if found and self._engine.refusal(found.input_size, found.mask_size) is None:
                    grids.append(found)
        best = min(grids, key=lambda grid: (not grid.exact, grid.pixels), default=None)
        if best is None or best.count == 1:
            return None
        self._tell(size, best, needed)
        return best

    def _tell(self, size: Size, grid: Grid, needed: bool) -> None:
        """Once of each; nothing of what was asked for."""
        if needed and "cut" not in self._told:
            self._told.add("cut")
            log.warning(
                "%s takes no image of %d×%d pixels whole: it, and others as large, are computed in "
                "overlapping tiles, %d of %d×%d",
                *(self._engine.label, *size, grid.count, *grid.input_size),
            )
        if not grid.exact and "inexact" not in self._told:
            self._told.add("inexact")
            log.warning(
                "%d×%d pixels: no simple fraction of them is the network's input, so that masks of "
                "tiles may be off by up to a pixel from one of the whole",
                *size,
            )

    def mask_shape(self, size: Size) -> tuple[int, ...]:
        """(H, W) of a mask, (C, H, W) of probabilities."""
        return self._engine.spec.result_shape(1, size)[1:]

    def takes(self, input_size: Size, size: Size) -> bool:
        """Whether the memory allows for a run of such sizes, as far as is known."""
        return math.prod(input_size) <= self._most_pixels(input_size, size)

    def _most_pixels(self, input_size: Size, size: Size) -> int:
        """Of network input in one run, of an image of such sizes or of tiles of it."""
        needed = self._engine.host_bytes(input_size, size)
        if not needed:
            return self.pixels
        most = math.prod(input_size) * self._image_bytes // needed
        return min(self.pixels, max(LEAST_PIXELS, most))

    def lower(self, unfit: Size, whole: Key) -> bool:
        """What is of network size `unfit` found no memory. False: `whole` can't be cut smaller."""
        before = self.pixels
        for self.pixels in fewer(min(before, unfit[0] * unfit[1])):
            if self.grid(*whole) is not None:
                return True
        self.pixels = before
        return False


def check_tile(spec: ModelSpec, tile: int | None) -> None:
    """Raise UserError where tiles would have other masks than the whole image."""
    if tile is not None and spec.bilinear:
        raise UserError(
            "the masks of this network depend on the size of the whole image",
            seen=f"--tile {tile}, and bilinear upsampling with aligned corners",
            expected="transposed convolutions, as in a network trained without --bilinear",
            hint="leave --tile out",
        )
