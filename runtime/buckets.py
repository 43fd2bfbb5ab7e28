"""Loaded images that wait for others of their size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from ..contract.types import U8, Size

T = TypeVar("T")

Key = tuple[Size, Size]
"""What the images of a batch share: network size and mask size."""


class Buckets(Generic[T]):
    """Tasks with their network inputs, by size. count and bytes: of all of them."""

    def __init__(self) -> None:
        self._found: dict[Key, list[tuple[T, U8]]] = {}
        self.count = self.bytes = 0

    def put(self, key: Key, images: Iterable[tuple[T, U8]]) -> None:
        for task, image in images:
            self._found.setdefault(key, []).append((task, image))
            self.count += 1
            self.bytes += image.nbytes

    def take(self, key: Key, most: int) -> list[tuple[T, U8]]:
        bucket = self._found.pop(key)
        if len(bucket) > most:
            self._found[key] = bucket[most:]
        taken = bucket[:most]
        self.count -= len(taken)
        self.bytes -= bytes_of(taken)
        return taken

    def drop(self, unwanted: Callable[[T], bool]) -> int:
        """Of what is `unwanted` nothing stays; its bytes."""
        before = self.bytes
        for key in self.keys:
            kept = [found for found in self._found.pop(key) if not unwanted(found[0])]
            if kept:
                self._found[key] = kept
        self.count = sum(map(len, self._found.values()))
        self.bytes = sum(map(bytes_of, self._found.values()))
        return before - self.bytes

    def size(self, key: Key) -> int:
        return len(self._found.get(key, ()))

    @property
    def keys(self) -> list[Key]:
        return list(self._found)

    @property
    def fullest(self) -> Key:
        return max(self._found, key=self.size)

    @property
    def heaviest(self) -> Key:
        return max(self._found, key=lambda key: bytes_of(self._found[key]))


def bytes_of(images: Iterable[tuple[T, U8]]) -> int:
    return sum(image.nbytes for _, image in images)
