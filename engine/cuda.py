"""A slot on CUDA: its buffers, its stream and its graph, around any backend's kernel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..contract.errors import UserError
from ..contract.types import U8, Size
from .base import Memory, Slot, Span
from .cuda_buffers import BatchBuffers, PinnedMemory
from .cuda_device import CudaDevice, cuda_errors
from .cuda_graph import Replay
from .cuda_spans import Laps


@dataclass(frozen=True)
class BatchShape:
    """A batch of network inputs (batch, h, w, channels) whose masks are (H, W).

    planes: of probabilities, where those come in place of masks.
    """

    batch: int
    input_size: Size
    channels: int
    mask_size: Size
    planes: int = 0

    @property
    def images(self) -> tuple[int, int, int, int]:
        return (self.batch, *self.input_size, self.channels)

    @property
    def masks(self) -> tuple[int, ...]:
        return (self.batch, *((self.planes,) if self.planes else ()), *self.mask_size)


class Kernel(ABC):
    """What runs between the two copies: a backend's enqueue. One belongs to one slot.

    name: the plan or network, for messages; eager: why its work cannot be captured into a CUDA
    graph, empty where it can.
    """

    name = "the network"
    eager = ""

    @abstractmethod
    def enqueue(
        self, shape: BatchShape, image: int, size_like: int, mask: int, stream: int
    ) -> None:
        """Queue the network on `stream`; image, size_like and mask are device addresses."""

    def make_room(self) -> None:  # noqa: B027  a kernel may keep nothing
        """Give back device memory that is kept for later; nothing is in flight in its slot."""

    @abstractmethod
    def close(self) -> None:
        """Free what it owns; the stream has been drained."""


class CudaSlot(Slot):
    """Copy in, compute and copy out on a stream of its own, so that slots overlap.

    From the second batch of a shape on, the network is a CUDA graph; not where the three are timed,
    each by itself, for spans(). Images and masks may lie elsewhere in every batch.
    """

    def __init__(
        self,
        device: CudaDevice,
        channels: int,
        kernel: Kernel,
        planes: int = 0,
        timed: bool = False,
    ) -> None:
        self._device, self._channels, self._kernel = device, channels, kernel
        self._planes = planes
        self._shape = BatchShape(0, (0, 0), channels, (0, 0), planes)
        self._inputs = PinnedMemory(device)
        self._outputs: Memory = PinnedMemory(device)
        self._images = self._inputs.view((0, 0, 0, channels))
        self._memory = BatchBuffers()
        self._replay = Replay("its parts are timed" if timed else kernel.eager)
        clock = device.clock() if timed else None
        self._stream: Any = device.take_stream()
        with device.current() as driver, cuda_errors("make an event"):
            self._laps = Laps(driver, clock) if clock else None
            flags = driver.event_flags  # a wait that sleeps leaves its core to those who decode
            self._done: Any = driver.Event(flags.DISABLE_TIMING | flags.BLOCKING_SYNC)
        self._busy = False
        self._n = 0
        self._what = ""

    @property
    def images(self) -> U8:
        return self._images

    def reserve(self, batch: int, size: Size) -> U8:
        self._wait()  # a buffer that grows must not be in flight
        self._images = self._inputs.view((batch, *size, self._channels))
        return self._images

    def use(self, images: U8) -> None:
        self._wait()
        self._images = images

    def submit(self, n: int, size: Size) -> None:
        self._wait()
        batch, height, width, channels = self._images.shape
        shape = BatchShape(batch, (height, width), channels, size, self._planes)
        self._shape = shape
        self._what = (
            f"images {shape.images}, masks {shape.masks}, {self._kernel.name},"
            f" stream {self._stream.handle:#x}"
        )
        with self._device.current() as driver, self._errors("start a batch"):
            try:
                self._queue(driver, shape)
            except BaseException:  # what is queued still reads the buffers
                with suppress(driver.Error):
                    self._stream.synchronize()
                raise
        self._n, self._busy = n, True

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """As cuda_errors, with the shape, the plan and the stream named."""
        with cuda_errors(f"{what}: {self._what}"):
            yield

    def _queue(self, driver: Any, shape: BatchShape) -> None:
        images = self._images
        self._masks = self._outputs.view(shape.masks)
        counts = (images.size, int(np.prod(shape.mask_size)), self._masks.size)
        image, like, mask = self._memory.addresses(driver, counts, self._kernel.make_room)

        def work() -> None:
            with self._errors("queue a batch"):
                self._kernel.enqueue(shape, image, like, mask, self._stream.handle)

        with self._errors("queue a batch"):
            self._mark(0)
            driver.memcpy_htod_async(image, images, self._stream)
            self._mark(1)
        if self._kernel.eager:  # it may have found out as it ran
            self._replay.refuse(self._kernel.eager)
        self._replay.run((shape, image, like, mask), work, self._stream.handle, self._what)
        with self._errors("queue a batch"):
            self._mark(2)
            driver.memcpy_dtoh_async(self._masks, mask, self._stream)
            self._mark(3)
        self._done.record(self._stream)

    def _mark(self, part: int) -> None:
        if self._laps is not None:
            self._laps.mark(part, self._stream)

    def masks(self) -> U8:
        self._wait()
        return self._masks[: self._n]

    def exchange(self, memory: Memory) -> Memory:
        self._wait()
        given, self._outputs = self._outputs, memory
        return given

    def spans(self) -> list[Span]:
        if self._laps is None or self._busy:
            return []
        with self._device.current(), cuda_errors("read its clock"):
            return self._laps.spans()

    def queue_network(self) -> None:
        """Queue the network again on the batch that lies on the device; nothing is copied."""
        with self._device.current() as driver, cuda_errors("queue the network"):
            image, like, mask = self._memory.addresses(driver, (0, 0, 0), self._kernel.make_room)
            self._kernel.enqueue(self._shape, image, like, mask, self._stream.handle)

    def mark(self) -> Any:
        """A timing event behind all that the slot has queued."""
        with self._device.current() as driver, cuda_errors("mark a place in the stream"):
            return driver.Event().record(self._stream)

    def reach(self, mark: Any) -> None:
        """Wait until the device has come to a mark."""
        with self._device.current(), cuda_errors("reach a mark"):
            mark.synchronize()

    def seconds_between(self, first: Any, last: Any) -> float:
        """By the device's clock, between two marks that it has come to."""
        with self._device.current(), cuda_errors("read its clock"):
            return float(first.time_till(last)) / 1000

    def _wait(self) -> None:
        if self._busy:
            self._busy = False
            with self._device.current(), self._errors("finish a batch"):
                self._done.synchronize()

    def close(self) -> None:
        """Drain the stream, then free in the reverse order; twice is harmless."""
        if self._stream is None:
            return
        drained = False
        with suppress(UserError):  # told where the masks were waited for
            self._wait()
            with self._device.current(), cuda_errors("drain a stream"):
                self._stream.synchronize()
            drained = True
        self._images = self._masks = np.empty((0, 0, 0), np.uint8)
        with self._device.current():
            self._replay.free()
            self._kernel.close()
            self._memory.free()
            self._inputs.free()
            self._outputs.free()
            self._done = self._laps = None
        if drained:
            self._device.give_stream(self._stream)
        self._stream = None
