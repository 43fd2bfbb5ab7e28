"""A GPU through pycuda, and what its errors are here. The only file that imports pycuda."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..contract.errors import DeviceMemoryError, UserError, first_line
from ..contract.modules import import_module, is_installed
from .cuda_spans import DeviceClock

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: no waits for the legacy stream, which others in the process use.

A capture on a blocking stream would fail, and make theirs fail, whenever another thread uses it.
"""


def pycuda_lacks() -> str:
    """Why pycuda cannot be used here, empty where it can."""
    if not is_installed("pycuda"):
        return "pycuda is not installed"
    try:
        import_module("pycuda.driver")
    except UserError as error:
        return f"pycuda fails ({first_line(error.seen)})"
    return ""


class CudaDevice:
    """The primary context of one GPU: shared with torch in this process, retained until close.

    Raises UserError when there is no such device.
    """

    def __init__(self, index: int = 0) -> None:
        self._driver = import_module("pycuda.driver")
        with cuda_errors("open the device"):
            self.device = _device(self._driver, index)
            self._context = self.device.retain_primary_context()
        self.index = index
        self._thread = threading.get_ident()
        self._clock: DeviceClock | None = None
        self._idle: list[Any] = []

    @property
    def name(self) -> str:
        return f"{self.device.name()} (cuda:{self.index})"

    @property
    def capability(self) -> str:
        """The compute capability, as "sm89"."""
        return _capability(self.device)

    @contextmanager
    def current(self) -> Iterator[Any]:
        """Yield pycuda's driver module while the context is current in this thread."""
        if self._context is None:
            raise RuntimeError("the CUDA device is closed")
        with cuda_errors("use the device in this thread"):
            self._context.push()
        try:
            yield self._driver
        finally:
            self._driver.Context.pop()

    def clock(self) -> DeviceClock:
        """One for all slots that are timed."""
        if self._clock is None:
            with self.current() as driver, cuda_errors("set a clock"):
                self._clock = DeviceClock(driver, driver.Stream(NON_BLOCKING))
        return self._clock

    def take_stream(self) -> Any:
        """A stream with nothing queued: one that was given back, else a new one.

        PyTorch's pool keeps memory by stream: with ever new ones it would grow with every job.
        """
        with self.current() as driver, cuda_errors("make a stream"):
            try:
                return self._idle.pop()
            except IndexError:
                return driver.Stream(NON_BLOCKING)

    def give_stream(self, stream: Any) -> None:
        """Take a drained stream back."""
        self._idle.append(stream)

    def close(self) -> None:
        """Release the context, from the thread that opened it; twice is harmless.

        In another thread pycuda cannot release it: it stays retained until the process ends.
        """
        if self._context is None:
            return
        with self.current():
            self._clock = None
            self._idle.clear()
        self._context.detach()
        self._context = None
        if threading.get_ident() == self._thread:
            # To release a primary context pycuda makes it current, and leaves it so.
            popped = ctypes.c_void_p()
            ctypes.CDLL("libcuda.so.1").cuCtxPopCurrent_v2(ctypes.byref(popped))


def _capability(device: Any) -> str:
    return "sm" + "".join(map(str, device.compute_capability()))


def capability_of(index: int) -> str:
    """As CudaDevice.capability, without a context. UserError when there is no such device."""
    driver = import_module("pycuda.driver")
    with cuda_errors("ask the device"):
        return _capability(_device(driver, index))


def cuda_index(device: str) -> int:
    """Of `cuda:1`; 0 where none is named."""
    return int(device.partition(":")[2] or 0)


def _device(driver: Any, index: int) -> Any:
    driver.init()
    count = driver.Device.count()
    if index >= count:
        raise UserError(f"no CUDA device {index}", seen=f"{count} devices")
    return driver.Device(index)


@contextmanager
def cuda_errors(what: str) -> Iterator[None]:
    """Turn pycuda's errors into a UserError that says what was tried; DeviceMemoryError is one."""
    driver = import_module("pycuda.driver")
    try:
        yield
    except driver.MemoryError as error:
        raise DeviceMemoryError(f"CUDA has no memory to {what}", seen=error) from error
    except driver.Error as error:
        raise UserError(f"CUDA failed to {what}", seen=error) from error
