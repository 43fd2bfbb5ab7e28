"""Memory for the images of a batch, which load threads fill row by row and a slot runs on as it is.

An image that finds no row has an array of its own, and is copied into a slot.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
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


@dataclass(eq=False)
class Page:
    """images: (batch, h, w, C). free: rows that nobody has yet; held: rows that somebody has.

    sealed: the free ones are for nobody.
    """

    memory: Memory
    images: U8
    key: Key
    free: list[int] = field(default_factory=list)
    held: int = 0
    sealed: bool = False


@dataclass(frozen=True, eq=False)
class Row:
    page: Page
    index: int

    @property
    def image(self) -> U8:
        """(h, w, C) of the page."""
        image: U8 = self.page.images[self.index]
        return image


class Pages(Closing):
    """Pages of an engine, most_bytes in all; those that are idle serve for any size.

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

    def expect(self, key: Key, batch: int) -> None:
        """More images of this size may come, which run whole and so many at a time.

        One at a time runs where it lies, unless the engine wants memory of its own kind.
        """
        if batch == 1 and self._engine.any_memory:
            return
        with self._lock:
            if len(self._batches) >= MOST_KEYS:
                self._batches.clear()
            self._batches[key] = batch

    def forget(self, key: Key) -> None:
        """Images of this size are cut into tiles by now."""
        with self._lock:
            self._batches.pop(key, None)

    def take(self, key: Key) -> Row | None:
        """A row for an image of this size; None where it is not known, or there is no room."""
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
        others = sum(page.images.nbytes for page in self._all if page not in self._idle[-1:])
        if others + math.prod(shape) > self._most_bytes:
            return []
        if not self._idle and len(self._all) >= self.most:
            return []
        try:
            memory = self._idle[-1].memory if self._idle else self._engine.memory()
            images = memory.view(shape)
        except DeviceMemoryError:  # an image does without
            self._most_bytes = others
            return []
        if self._idle:
            self._all.remove(self._idle.pop())
        page = Page(memory, images, key, list(range(batch))[::-1])
        self._all.append(page)
        return self._open.setdefault(key, [page])

    def refuse(self, row: Row) -> None:
        """Its image has failed: the row is for another, unless the page runs without it."""
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

    def give_back(self, rows: Sequence[Row | None]) -> None:
        """What lies there has run, or lies elsewhere."""
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

    def close(self) -> None:
        """Free them all; twice is harmless. Nothing runs on them, and no thread fills them."""
        with self._lock:
            for page in self._all:
                page.images = np.empty((0, 0, 0, 0), np.uint8)
                page.memory.free()
            self._all, self._idle, self._open, self._batches = [], [], {}, {}
