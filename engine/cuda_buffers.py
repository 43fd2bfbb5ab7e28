"""Memory for slots: page-locked on the host, and on the device. It grows and never shrinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..contract.types import U8
from .cuda_device import CudaDevice, cuda_errors


class PinnedMemory:
    """Owns page-locked host bytes; grows, never shrinks. For any thread; the device outlives it."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._bytes: U8 = np.empty(0, np.uint8)

    def view(self, shape: tuple[int, ...]) -> U8:
        """As HostBuffer's."""
        count = int(np.prod(shape))
        if count > self._bytes.size:
            with self._device.current() as driver, cuda_errors(f"pin memory for {shape}"):
                self.free()
                self._bytes = driver.pagelocked_empty(count, np.uint8)
        return self._bytes[:count].reshape(shape)

    def free(self) -> None:
        """Now: what becomes of it with its last view depends on the thread that drops that."""
        allocation, self._bytes = self._bytes.base, np.empty(0, np.uint8)
        if allocation is not None:
            with self._device.current():
                allocation.free()  # type: ignore[attr-defined]


class DeviceBuffer:
    """Owns bytes on the device; grows, never shrinks. Use with the device current."""

    def __init__(self) -> None:
        self._memory: Any = None
        self._size = 0

    def address(self, driver: Any, count: int) -> int:
        """The address of at least `count` bytes."""
        if count > self._size:
            self.free()
            self._memory = driver.mem_alloc(count)
            self._size = count
        return int(self._memory)

    def free(self) -> None:
        if self._memory is not None:
            self._memory.free()
        self._memory, self._size = None, 0


class BatchBuffers:
    """Owns a slot's memory on the device: images, what stands for the masks' size, masks."""

    def __init__(self) -> None:
        self._buffers = (DeviceBuffer(), DeviceBuffer(), DeviceBuffer())

    def addresses(
        self, driver: Any, counts: tuple[int, int, int], make_room: Callable[[], None]
    ) -> tuple[int, int, int]:
        """Of at least so many bytes; make_room: called once where there is no memory for them."""
        try:
            return self._addresses(driver, counts)
        except driver.MemoryError:
            make_room()
        return self._addresses(driver, counts)

    def _addresses(self, driver: Any, counts: tuple[int, int, int]) -> tuple[int, int, int]:
        image, like, mask = map(DeviceBuffer.address, self._buffers, (driver,) * 3, counts)
        return image, like, mask

    def free(self) -> None:
        for buffer in self._buffers:
            buffer.free()


class DeviceView:
    """Device memory of someone else, uint8, as other libraries take it without a copy."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        # https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }
