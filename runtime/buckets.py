"""Loaded images that wait for others of their size."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..contract.types import U8
from .pages import Row

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
C = TypeVar("C", covariant=True)


@dataclass(frozen=True)
class Found(Generic[C]):
    """An image (h, w, C) that is loaded, and where it lies if not in an array of its own."""

    item: C
    image: U8
    row: Row | None = None


def own_image(found: Found[T]) -> U8:
    """The image in an array of its own: the row of a page is needed for others."""
    return found.image if found.row is None else found.image.copy()


class Buckets(Generic[K, T]):
    """What is loaded, by what the images of a batch share. count and bytes: of all of them."""

    def __init__(self) -> None:
        self._found: dict[K, list[Found[T]]] = {}
        self.count = self.bytes = 0

    def put(self, key: K, found: Found[T], order: Callable[[Found[T]], int] | None = None) -> None:
        """Behind those that have come before, or by the order of all at this key."""
        bucket = self._found.setdefault(key, [])
        if order is None:
            bucket.append(found)
        else:
            insort(bucket, found, key=order)
        self.count += 1
        self.bytes += found.image.nbytes

    def take(self, key: K, most: int) -> list[Found[T]]:
        bucket = self._found.pop(key)
        if len(bucket) > most:
            self._found[key] = bucket[most:]
        taken = bucket[:most]
        self.count -= len(taken)
        self.bytes -= bytes_of(taken)
        return taken

    def move(self, key: K, to: K) -> None:
        """All that waits at one key behind what waits at another."""
        self._found.setdefault(to, []).extend(self._found.pop(key))

    def drop(self, unwanted: Callable[[T], bool]) -> int:
        """Of what is `unwanted` nothing stays; its bytes."""
        before = self.bytes
        for key in self.keys:
            kept = [found for found in self._found.pop(key) if not unwanted(found.item)]
            if kept:
                self._found[key] = kept
        self.count = sum(map(len, self._found.values()))
        self.bytes = sum(map(bytes_of, self._found.values()))
        return before - self.bytes

    def clear(self) -> None:
        self._found.clear()
        self.count = self.bytes = 0

    def size(self, key: K) -> int:
        return len(self._found.get(key, ()))

    @property
    def keys(self) -> list[K]:
        return list(self._found)

    @property
    def heaviest(self) -> K:
        return max(self._found, key=lambda key: bytes_of(self._found[key]))


def bytes_of(images: Iterable[Found[T]]) -> int:
    return sum(found.image.nbytes for found in images)


def as_they_lie(bucket: Sequence[Found[T]], batch: int, any_memory: bool) -> U8 | None:
    """The images as (batch, h, w, C): rows of a page that follow each other, or a single one.

    any_memory: of the engine. None where they lie apart, and are to be copied.
    """
    image, first = bucket[0].image, bucket[0].row
    if first is None:
        fit = batch == 1 and any_memory and image.flags.writeable and image.flags.c_contiguous
        return image[None] if fit else None
    last = first.index + batch
    for index, found in enumerate(bucket, first.index):
        if found.row is None or found.row.page is not first.page or found.row.index != index:
            return None
    return first.page.images[first.index : last] if last <= len(first.page.images) else None
