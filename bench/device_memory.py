"""The most device memory that a row takes, by one rule for every row: from before it takes any."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..contract.errors import UserError
from ..contract.modules import import_module
from ..engine.tensorrt_backend import cuda_devices
from .machine import cuda_device, device_bytes_in_use
from .nvml import gpu_handle

SECONDS = 0.02
"""Between samples: a peak that is shorter is not seen."""
NVML, RUNTIME = "NVML", "cudaMemGetInfo"
RULES = {
    NVML: "CUDA's context is in it",
    RUNTIME: "CUDA's context, which the first look opens, is not in it",
}
"""Who tells → what that makes of the number."""

Read = Callable[[], int | None]
"""Bytes of the GPU that are taken now, by whomever; None where this look failed."""


class MemoryWatch:
    """taken: the most that was taken at once, less what was at the start; None: not known."""

    def __init__(self, by: str = "") -> None:
        self.by = by
        self.base: int | None = None
        self.most = 0

    @property
    def taken(self) -> int | None:
        return None if self.base is None else self.most - self.base

    def look(self, read: Read) -> None:
        found = read()
        if found is not None:
            self.base = found if self.base is None else self.base
            self.most = max(self.most, found)


@contextmanager
def watch_memory(device: str) -> Iterator[MemoryWatch]:
    """Sample beside what runs inside; device: as asked for, `auto` and `cpu` too."""
    place = place_of(device)
    if not place:
        yield MemoryWatch()
        return
    by, read, close = reader_of(place)
    watch = MemoryWatch(by)
    watch.look(read)
    stop = threading.Event()

    def keep_looking() -> None:
        while not stop.wait(SECONDS):
            watch.look(read)

    thread = threading.Thread(target=keep_looking)
    thread.start()
    try:
        yield watch
        watch.look(read)
    finally:
        stop.set()
        thread.join()
        close()


def memory_rule(by: str) -> str:
    """What stands under the table."""
    return (
        "device MiB: the most of the GPU's memory that was taken at once from before the row took "
        f"any until its end, less what was taken before it; by whomever; {by}, every "
        f"{SECONDS:g} s; {RULES.get(by, '')}"
    )


def reader_of(place: str) -> tuple[str, Read, Callable[[], object]]:
    """(who tells, how it is asked, what ends it): NVML, which needs no context; else CUDA."""
    try:
        nvml = import_module("pynvml")
        handle = gpu_handle(nvml, place)
    except UserError:
        return RUNTIME, lambda: _taken_by_cuda(place), lambda: None

    def read() -> int | None:
        try:
            return int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
        except nvml.NVMLError:
            return None

    return NVML, read, nvml.nvmlShutdown


def _taken_by_cuda(place: str) -> int | None:
    try:
        return device_bytes_in_use(place)
    except (RuntimeError, AssertionError):  # no such device: the row itself says so
        return None


def place_of(device: str) -> str:
    """`cuda:N` that a row of `device` may run on; '' where there is no GPU, or none is wanted."""
    if device == "cpu" or not cuda_devices():
        return ""
    return cuda_device(device) or "cuda:0"
