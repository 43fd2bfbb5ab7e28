"""The one interface that serves every backend: an engine gives slots, a slot runs one batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeAlias

import numpy as np

from ..contract.closing import Closing
from ..contract.errors import DeviceMemoryError, ImageError, UserError
from ..contract.memory import memory_bytes, run_bytes, tells_of_memory
from ..contract.spec import ModelSpec
from ..contract.tiles import cut_to, run_in_tiles
from ..contract.types import U8, Size

Run: TypeAlias = Callable[[U8, Size], U8]
"""One network input (h, w, C) and the size (H, W) of its mask → the mask."""

Span: TypeAlias = tuple[str, int, int]
"""What was done, its start and its end in time.perf_counter_ns()."""


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Turn what is raised where the host has no memory into a DeviceMemoryError.

    The libraries have no class for it in common, only words.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not tells_of_memory(error):
            raise
        words = str(error).strip().splitlines() or [type(error).__name__]
        hint = "--batch 1   takes least; predict --tile 512   less, of large images"
        raise DeviceMemoryError(f"no memory for {what}", seen=words[-1], hint=hint) from error


class HostBuffer:
    """Owns bytes on the host; grows when a larger shape comes, never shrinks."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def view(self, shape: tuple[int, ...]) -> U8:
        """A uint8 view of `shape` on the buffer; earlier views die when it grows."""
        count = math.prod(shape)
        if count > self._bytes.size:
            with memory_errors(f"a buffer of {shape}"):
                self._bytes = np.zeros(count, np.uint8)
        return self._bytes[:count].reshape(shape)

    def free(self) -> None:
        """Give the bytes back; twice is harmless."""
        self._bytes = np.empty(0, np.uint8)


class Memory(Protocol):
    """Owns bytes on the host that slots of an engine run on where they lie; any thread may use it.

    view: as HostBuffer's; DeviceMemoryError where there is no memory.
    """

    def view(self, shape: tuple[int, ...]) -> U8: ...
    def free(self) -> None: ...


class Slot(ABC):
    """Owns the buffers of one batch in flight. Use from one thread at a time.

    reserve → fill `images` → submit → masks, and again; or `use` in place of the first two.
    """

    @abstractmethod
    def reserve(self, batch: int, size: Size) -> U8:
        """Shape the slot for `batch` images of network size; return `images` to be filled."""

    def use(self, images: U8) -> None:
        """Run the next batch on (batch, h, w, C) where it lies: in the engine's `memory`, or any.

        See any_memory. Nothing may change it before the masks have come. Here it is copied, which
        does as well.
        """
        self.reserve(len(images), (images.shape[1], images.shape[2]))[:] = images

    @property
    @abstractmethod
    def images(self) -> U8:
        """Host view, uint8 (batch, h, w, C)."""

    @abstractmethod
    def submit(self, n: int, size: Size) -> None:
        """Start the batch and return at once; `n` images count, masks come at `size` (H, W).

        The whole batch always runs, so that a mask does not depend on how many came along.
        """

    @abstractmethod
    def masks(self) -> U8:
        """Wait for this slot alone. uint8 (n, H, W), valid until the next submit."""

    def exchange(self, memory: Memory) -> Memory | None:
        """Give away what holds the masks that have come, which stay valid; the next use `memory`.

        memory: of the engine; it is the slot's from now on, and what it returns the caller's. None:
        nothing is exchanged, as here.
        """
        del memory
        return None

    def spans(self) -> list[Span]:
        """What a device did for the batch whose masks have come.

        Nothing unless the engine is `timed` and the device has a clock.
        """
        return []

    def close(self) -> None:  # noqa: B027  a slot may own nothing but memory
        """Free the buffers; twice is harmless."""


class Engine(Closing, ABC):
    """A model opened on a device.

    slots: batches to keep in flight, spare_slots as many more where they are quick; streams: how
    many of them it computes at once, where that is known; batch: images a slot should hold of any
    size, batch_for more of small ones; min_batch: the fewest that it runs with; any_batch: an image
    has the same mask, bit for bit, in a batch of any number; graphs: whether slots replay CUDA
    graphs, None where an engine has none; timed: whether slots on CUDA note when the device copies
    and computes; why: how it was chosen; largest: network sizes (h, w) of which it takes none
    larger, or none where it takes any; pixel_bytes: host memory that the network takes for a pixel
    of its input while its batch runs, about, 0 where that is not the host's; any_memory: its slots
    use arrays that may be written and are contiguous, whatever memory they lie in.
    """

    backend: str
    precision: str
    device: str
    slots: int = 2
    spare_slots: int = 0
    streams: int = 1
    batch: int = 1
    min_batch: int = 1
    any_batch: bool = False
    graphs: bool | None = None
    timed: bool = False
    why: str = ""
    largest: Sequence[Size] = ()
    pixel_bytes: int = 0
    any_memory: bool = False

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @property
    def most_batch(self) -> int:
        """The most that batch_for gives."""
        return self.batch

    def batch_for(self, input_size: Size) -> int:
        """Images of a network size (h, w) that a slot should hold."""
        del input_size
        return self.batch

    def refusal(self, input_size: Size, size: Size) -> ImageError | None:
        """Why no slot takes an image of a network size whose mask is to be of `size` (H, W).

        None: it is taken, as far as can be known before it runs.
        """
        del input_size, size
        return None

    def host_bytes(self, input_size: Size, size: Size) -> int:
        """Of the host's memory that an image of such sizes takes while its batch runs, about."""
        if not self.pixel_bytes:
            return 0
        return run_bytes(self.spec, self.pixel_bytes, input_size, size)

    @abstractmethod
    def slot(self) -> Slot:
        """A new slot; it must not outlive the engine."""

    def memory(self) -> Memory:
        """What slots of this engine may `use`; it must not outlive the engine."""
        return HostBuffer()

    @contextmanager
    def running(self) -> Iterator[Run]:
        """Give what `run` does, for image after image in one slot: to make one may take seconds.

        An image for which more than half of this machine's memory is needed is run in tiles.
        """
        slot = self.slot()
        memory = memory_bytes() // 2

        def run(image: U8, size: Size) -> U8:
            slot.reserve(self.min_batch, (image.shape[0], image.shape[1]))[0] = image
            slot.submit(1, size)
            mask: U8 = slot.masks()[0].copy()
            return mask

        def whole(image: U8, size: Size) -> U8:
            input_size = (image.shape[0], image.shape[1])
            taken = self.min_batch * self.host_bytes(input_size, size)
            pixels = math.prod(input_size)
            fits = taken <= memory or self.spec.bilinear
            grid = None if fits else cut_to(pixels * memory // taken, input_size, size)
            if grid is None:
                return run(image, size)
            mask = np.empty(self.spec.result_shape(1, size)[1:], np.uint8)
            return run_in_tiles(run, image, mask, grid)

        try:
            yield whole
        finally:
            slot.close()

    def run(self, image: U8, size: Size) -> U8:
        """One network input (h, w, C) → its mask (H, W), in the smallest slot."""
        with self.running() as run:
            return run(image, size)

    @property
    def label(self) -> str:
        return f"{self.backend} {self.precision} on {self.device}"
