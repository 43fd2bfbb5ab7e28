"""Memory for the images of a batch, which load threads fill row by row and a slot runs on as it is.

An image that finds no row has an array of its own, and is copied into a slot.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..contract.closing import Closing
from ..contract.errors import DeviceMemoryError
from ..contract.types import U8, Size
from ..engine.base import Engine, Memory

Key = tuple[Size, Size]
"""What the images of a batch share: network size and mask size."""

MOST_KEYS = 1024
"""Sizes of images that are known at once; they are learnt again."""


EMPTY = np.empty((0, 0, 0, 0), np.uint8)


@dataclass(eq=False)
class Page:
    """images: (batch, h, w, C), in memory of `capacity` bytes. free: rows that nobody has yet.

    held: rows that somebody has; sealed: the free ones are for nobody.
    """

    memory: Memory
    capacity: int
    images: U8 = field(default_factory=lambda: EMPTY)
    key: Key = ((0, 0), (0, 0))
    free: list[int] = field(default_factory=list)
    held: int = 0
    sealed: bool = False


@dataclass(frozen=True, eq=False)
class Row:
    """Where an image lies, or is to lie, on a page that it holds."""

    page: Page
    index: int

    @property
    def image(self) -> U8:
        """(h, w, C) of the page."""
        image: U8 = self.page.images[self.index]
        return image


class Pages(Closing):
    """Pages of an engine, of most_bytes in all; those that are idle serve for any size they hold.

    most: pages at once. Any thread may take a row.
    """

    def __init__(self, engine: Engine, most_bytes: int) -> None:
        self._engine, self._most_bytes = engine, most_bytes
        self.most = 0
        self._lock = threading.Lock()
        self._batches: dict[Key, int] = {}
        self._all: list[Page] = []
        self._idle: list[Page] = []
        self._open: dict[Key, list[Page]] = {}

    def expect(self, key: Key, batch: int | None) -> None:
        """More images of this size may come, so many at a time; None: they are cut, or too large.

        One at a time runs where it lies, unless the engine wants memory of its own kind.
        """
        with self._lock:
            if batch is None or (batch == 1 and self._engine.any_memory):
                self._batches.pop(key, None)
                return
            if len(self._batches) >= MOST_KEYS:
                self._batches.clear()
            self._batches[key] = batch

    def take(self, key: Key) -> Row | None:
        """A row for an image of this size; None where it is not expected, or there is no room."""
        with self._lock:
            batch = self._batches.get(key)
            if batch is None:
                return None
            pages = self._open.get(key) or self._opened(key, batch)
            if not pages:
                return None
            page = pages[-1]
            row = Row(page, page.free.pop())
            page.held += 1
            if not page.free:
                self._shut(page)
            return row

    def _opened(self, key: Key, batch: int) -> list[Page]:
        """The page for this size that is new or was idle, if there may be one."""
        shape = (batch, *key[0], self._engine.spec.channels)
        page = self._roomy(math.prod(shape))
        if page is None:
            return []
        page.images, page.key = page.memory.view(shape), key
        page.free, page.sealed = list(range(batch))[::-1], False
        return self._open.setdefault(key, [page])

    def _roomy(self, needed: int) -> Page | None:
        """Of at least so many bytes: one that is idle, or a new one, for which idle ones may go."""
        fitting = [page for page in self._idle if page.capacity >= needed]
        if fitting:
            page = min(fitting, key=lambda page: page.capacity)
            self._idle.remove(page)
            return page
        if not self._room_for(needed, [page for page in self._all if page not in self._idle]):
            return None  # idle ones may serve for others
        while not self._room_for(needed, self._all):
            self._free(self._idle.pop(0))
        try:
            memory = self._engine.memory()
            memory.view((needed,))
        except DeviceMemoryError:  # an image does without
            self._most_bytes = _bytes_of(self._all) + needed // 2
            return None
        self._all.append(Page(memory, needed))
        return self._all[-1]

    def _room_for(self, needed: int, beside: list[Page]) -> bool:
        fits = _bytes_of(beside) + needed <= self._most_bytes
        return fits and len(beside) < self.most

    def refuse(self, row: Row | None) -> None:
        """Nothing runs there: the row is for another image, unless the page runs without it."""
        if row is None:
            return
        page = row.page
        with self._lock:
            if not page.sealed:
                page.free.append(row.index)
                pages = self._open.setdefault(page.key, [])
                if page not in pages:
                    pages.append(page)
            self._let_go(page)

    def seal(self, page: Page) -> None:
        """It runs as far as it is full; no row of it is taken any more."""
        with self._lock:
            page.sealed = True
            self._shut(page)

    def give_back(self, rows: Iterable[Row | None]) -> None:
        """What lies there has run, or lies elsewhere by now."""
        with self._lock:
            for row in rows:
                if row is not None:
                    self._let_go(row.page)

    def _let_go(self, page: Page) -> None:
        page.held -= 1
        if not page.held:
            self._shut(page)
            self._idle.append(page)

    def _shut(self, page: Page) -> None:
        pages = self._open.get(page.key, [])
        if page in pages:
            pages.remove(page)
        if not pages:
            self._open.pop(page.key, None)

    def _free(self, page: Page) -> None:
        page.images = EMPTY
        self._all.remove(page)
        page.memory.free()

    def trim(self) -> None:
        """Free those that are idle: memory is short."""
        with self._lock:
            while self._idle:
                self._free(self._idle.pop())

    def close(self) -> None:
        """Free them all; twice is harmless. Nothing runs on them, and no thread fills them."""
        with self._lock:
            while self._all:
                self._free(self._all[-1])
            self._idle, self._open, self._batches = [], {}, {}


def _bytes_of(pages: Iterable[Page]) -> int:
    return sum(page.capacity for page in pages)
