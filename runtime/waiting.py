"""Loaded images, whole or in tiles, that wait for others of their size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np

from ..contract.errors import ImageError
from ..contract.tiles import Grid, Mosaic, Tile
from ..contract.types import U8, Size
from .buckets import Buckets, Found, bytes_of, own_image
from .budget import Budget
from .cutter import Cutter
from .fit import no_memory
from .pages import Key, Page, Pages
from .writing import Result

T = TypeVar("T")

Bin = tuple[Key, Page | None]
"""Of images of one size: those of a page, or those that have arrays of their own."""


class Waiting(Generic[T]):
    """Buckets of tasks and of tiles of tasks, whose bytes the budget holds."""

    def __init__(self, cutter: Cutter, budget: Budget, pages: Pages) -> None:
        self.cutter, self.budget, self.pages = cutter, budget, pages
        self.buckets: Buckets[Bin, T | Tile[T]] = Buckets()

    def put(
        self,
        found: Found[T],
        size: Size,
        grid: Grid | None,
        mask: U8 | None = None,
    ) -> Bin:
        """Into the bucket of its size, or of its page, which is returned, or its tiles into theirs.

        grid: as the cutter gives it. mask: for that of the whole, else a new one. ImageError where
        there is no memory for it.
        """
        if grid is None:
            return self._put(key_of(found.image, size), found)
        try:
            image = own_image(found)  # tiles are parts of an array that stays
            mask = np.empty(self.cutter.mask_shape(size), np.uint8) if mask is None else mask
        except MemoryError:
            raise no_memory(size, "its mask") from None
        finally:
            self.pages.refuse(found.row)
        key = (grid.input_size, grid.mask_size)
        for tile in Mosaic(found.item, image, mask, grid).tiles():
            self._put(key, Found(tile, tile.image))
        return key, None

    def put_back(self, found: Found[T | Tile[T]], key: Key) -> None:
        """What found no memory; as put. A tile too large by now makes its image be cut anew."""
        item = found.item
        if not isinstance(item, Tile):
            self.put(Found(item, found.image, found.row), key[1], self.cutter.grid(*key))
        elif item.mosaic.void:
            pass
        elif self.cutter.takes(*key):
            self._put(key, found)
        else:
            mosaic = item.mosaic
            grid = self.cutter.grid(*whole_key(item, key))
            if grid is None:  # it cannot be cut smaller, as another one could
                self._put(key, found)
                return
            self._drop(mosaic)
            self.put(Found(mosaic.task, mosaic.image), mosaic.size, grid, mosaic.mask)

    def _put(self, key: Key, found: Found[T | Tile[T]]) -> Bin:
        """Rows of a page that runs without them wait with those that lie elsewhere."""
        self.budget.hold(found.image.nbytes)
        row = found.row
        if row is None or row.page.sealed:
            self.buckets.put((key, None), found)
            return key, None
        self.buckets.put((key, row.page), found, lambda other: other.row.index if other.row else 0)
        return key, row.page

    def full(self, place: Bin, batch: int) -> int:
        """Images with which a bucket is full: those of a batch, or of its page."""
        page = place[1]
        return batch if page is None else min(batch, len(page.images))

    @property
    def fullest(self) -> Key:
        """The size of most images."""
        sizes: Counter[Key] = Counter()
        for place in self.buckets.keys:
            sizes[place[0]] += self.buckets.size(place)
        return max(sizes, key=lambda key: sizes[key])

    def gather(self, key: Key) -> None:
        """What waits on pages joins the others of its size."""
        for size, page in self.buckets.keys:
            if size == key and page is not None:
                self.pages.seal(page)
                self.buckets.move((key, page), (key, None))

    def take(self, place: Bin, most: int) -> list[Found[T | Tile[T]]]:
        bucket = self.buckets.take(place, most)
        self.budget.give_back(bytes_of(bucket))
        return bucket

    def fail(self, item: T | Tile[T], error: ImageError) -> Iterator[Result[T]]:
        """An image of many tiles fails once, and those that wait are not run."""
        if not isinstance(item, Tile):
            yield Result(item, error)
        elif not item.mosaic.void:
            self._drop(item.mosaic)
            yield Result(item.mosaic.task, error)

    def _drop(self, mosaic: Mosaic[T]) -> None:
        mosaic.void = True
        count = self.buckets.drop(lambda item: isinstance(item, Tile) and item.mosaic is mosaic)
        self.budget.give_back(count)


def key_of(image: U8, size: Size) -> Key:
    return (image.shape[0], image.shape[1]), size


def whole_key(item: object, key: Key) -> Key:
    """That of the image of which `item`, of `key`, is a tile, or which it is itself."""
    return key_of(item.mosaic.image, item.mosaic.size) if isinstance(item, Tile) else key
