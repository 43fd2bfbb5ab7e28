"""Slots whose inputs lie in them already: what engine-only measurements run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ..contract.images import image_size
from ..contract.resize import network_input
from ..contract.spec import ModelSpec
from ..contract.types import U8, Size
from ..engine.base import Engine, Slot


@dataclass(frozen=True)
class Batch:
    """Network inputs (h, w, C) of one size, one batch of them, whose masks are (H, W)."""

    images: Sequence[U8]
    size: Size

    @property
    def input_size(self) -> Size:
        height, width = self.images[0].shape[:2]
        return height, width


def paths_by_size(paths: Sequence[str]) -> dict[Size, list[Path]]:
    """Images by their own (H, W), the commonest size first; their headers alone are decoded."""
    found: dict[Size, list[Path]] = {}
    for path in map(Path, paths):
        found.setdefault(image_size(path), []).append(path)
    return dict(sorted(found.items(), key=lambda group: -len(group[1])))


def commonest_batch(
    spec: ModelSpec,
    sizes: Mapping[Size, Sequence[Path]],
    count: int,
    bit_depth: int | None = None,
) -> Batch:
    """A batch of `count` of the first of `paths_by_size`."""
    size, paths = next(iter(sizes.items()))
    images = [network_input(path, spec, bit_depth=bit_depth)[0] for path in paths[:count]]
    return Batch([images[i % len(images)] for i in range(count)], size)


def fill_slot(slot: Slot, batch: Batch) -> None:
    images = slot.reserve(len(batch.images), batch.input_size)
    for row, image in zip(images, batch.images, strict=True):
        row[:] = image


class FilledSlots:
    """Slots of an engine in flight in turn, on one batch; masks reach the host.

    Either `turn` or `once`, not both: `once` wants its slot idle.
    """

    def __init__(self, engine: Engine, batch: Batch, count: int) -> None:
        self._engine, self._batch, self._count = engine, batch, count
        self._next = 0
        self.slots: list[Slot] = []
        self._flying = [False] * count

    def __enter__(self) -> Self:
        try:
            for _ in range(self._count):
                self.slots.append(self._engine.slot())
                fill_slot(self.slots[-1], self._batch)
        except BaseException:  # as for want of memory, which the earlier ones hold
            self._close()
            raise
        return self

    def turn(self) -> int:
        """Wait for the slot that was started first and start it again; the images of a batch."""
        index = self._next % len(self.slots)
        self._next += 1
        if self._flying[index]:
            self.slots[index].masks()
        self.slots[index].submit(len(self._batch.images), self._batch.size)
        self._flying[index] = True
        return len(self._batch.images)

    def start(self) -> None:
        """Put every slot in flight."""
        for _ in self.slots:
            self.turn()

    def cycle(self) -> int:
        """A turn of every slot at least, as many as leave slots that were started as they were.

        Batches on two streams end together: of three slots' turns one round takes the time of one
        batch, the next that of two; four always take that of two.
        """
        together = min(len(self.slots), self._engine.streams)
        turns = math.ceil(len(self.slots) / together) * together
        return sum(self.turn() for _ in range(turns))

    def drain(self) -> None:
        """Wait for all that `turn` has started."""
        for index, slot in enumerate(self.slots):
            if self._flying[index]:
                slot.masks()
                self._flying[index] = False

    def once(self) -> int:
        """One batch from its start to its masks, with none beside it."""
        self.slots[0].submit(len(self._batch.images), self._batch.size)
        self.slots[0].masks()
        return len(self._batch.images)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.drain()
        finally:
            self._close()

    def _close(self) -> None:
        for slot in self.slots:
            slot.close()
